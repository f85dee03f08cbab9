"""Every notebook runs from top to bottom. Their cells are plain Python, so nothing of Jupyter is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK_XLA

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


# Numbers of a notebook that show what training does, and fewer that show that the notebook runs.
FEWER = {
    "02_align_a_tiny_model": {
        "demonstrations=20_000, pairs=3200": "demonstrations=3_000, pairs=640",
        '"steps": 600': '"steps": 60',
    }
}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "\n\n".join(cells)
    for shown, fewer in FEWER.get(path.stem, {}).items():
        assert text.count(shown) == 1
        text = text.replace(shown, fewer)
    program = tmp_path / "notebook.py"
    program.write_text(text, encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(FOLDER.parent), "XLA_FLAGS": QUICK_XLA}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_notebooks_are_stored_without_outputs():
    """Outputs would go stale and hide changes in diffs."""
    for path in FOLDER.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
