"""What README.md shows is what the program says."""

import re
from pathlib import Path

from jaxalign.cli import help as texts
from jaxalign.method_text import grouped
from jaxalign.methods import METHODS


def test_every_method_is_listed(repository: Path):
    """In order, and with its page. That the table is fresh, tests/test_docs.py tells."""
    shown = (repository / "README.md").read_text().partition("<!-- methods:")[2].partition("<!-- end of methods -->")[0]
    listed = re.findall(r"^\| \[(.+?)\]\(docs/methods/(.+?)\.md\) \|", shown, re.MULTILINE)
    assert listed == [(method.name, method.name) for _, methods in grouped() for method in methods]
    assert sorted(METHODS) == sorted(name for name, _ in listed)


def test_every_verb_is_listed(repository: Path):
    verbs = (repository / "README.md").read_text().partition("| verb |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", verbs, re.MULTILINE)
    assert sorted(listed) == sorted(texts.VERBS)


def test_exit_codes(repository: Path):
    """The README and `--help` name the same codes."""
    readme = (repository / "README.md").read_text()
    codes = set(re.findall(r"^  (\d+)  ", texts.EXIT_CODES, re.MULTILINE))
    assert codes == set(re.findall(r"^\| (\d+) \|", readme, re.MULTILINE))


def test_links_lead_somewhere(repository: Path):
    for document in ("README.md", "CONTRIBUTING.md", "launch/README.md"):
        path = repository / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{document}: {target}"


def test_code_runs(repository: Path):
    """The part of the Python example that needs no model."""
    code = re.search(r"```python\n(.*?)\n```", (repository / "README.md").read_text(), re.DOTALL)
    assert code is not None
    example = code[1].split("\npolicy, variables")[0]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert abs(float(names["losses"][0]) - 0.5543552) < 1e-6
