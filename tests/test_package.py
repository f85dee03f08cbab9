"""What holds of the package as a whole."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

HEAVY = ("datasets", "transformers", "orbax", "grain", "matplotlib", "tensorboardX", "wandb", "torch", "absl")


def test_every_folder_is_a_package(repository: Path):
    """The import contracts and the wheel see only folders with an __init__.py."""
    folders = {file.parent for file in (repository / "jaxalign").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_files_are_short(repository: Path):
    """A file is one idea: fewer than 400 lines."""
    lengths = {file: len(file.read_text().splitlines()) for file in (repository / "jaxalign").rglob("*.py")}
    assert {str(file): length for file, length in lengths.items() if length >= 400} == {}


@pytest.mark.parametrize(
    "module",
    [
        "jaxalign",
        "jaxalign.cli",
        "jaxalign.objectives",
        "jaxalign.types",
        "jaxalign.analysis.field",
        "jaxalign.method_text",
    ],
)
def test_import_is_light(module: str):
    """Libraries that take seconds to load wait until they are needed."""
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == []


def test_help_does_not_load_jax():
    program = "import sys\nfrom jaxalign.cli import main\nmain(['--help'])\nassert 'jax' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "train" in result.stdout


def test_torch_is_not_required():
    try:
        required = metadata.requires("jaxalign") or []
    except metadata.PackageNotFoundError:
        pytest.skip("jaxalign is not installed here")
    assert [line for line in required if "torch" in line and "extra ==" not in line] == []
