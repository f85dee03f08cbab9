"""The generated documents: fresh, complete, and with links that lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from jaxalign.cli.parser import parse
from jaxalign.config_transport import load
from jaxalign.data.columns import LAYOUT_COLUMNS, MADE
from jaxalign.data.formats import normalise
from jaxalign.data.records import Where
from jaxalign.docstrings import Block, blocks, read_docstring
from jaxalign.errors import ConfigError
from jaxalign.method_text import GROUPS, describe, group_of, grouped, table, with_data
from jaxalign.methods import METHODS, Layout, Method, get_method


@pytest.fixture(scope="module")
def generator(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", repository / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[Path, str]:
    return generator.documents()


def test_documents_are_fresh(generator: ModuleType, repository: Path):
    names = [str(path.relative_to(repository)) for path in generator.stale()]
    assert names == [], "run `make docs`"


def test_every_method_has_its_page(pages: dict[Path, str], repository: Path):
    folder = repository / "docs" / "methods"
    index = pages[folder / "README.md"]
    for name, method in METHODS.items():
        page = pages[folder / f"{name}.md"]
        assert f"]({name}.md)" in index
        for heading in ("Formula", "Data and inputs", "Options", "Run it", "Results", "Example"):
            assert f"\n## {heading}\n" in page, f"{name}: {heading}"
        for word in (*method.inputs, *method.options):
            assert f"| `{word}` |" in page, f"{name}: {word}"
        assert "``" not in page.replace("```", ""), f"{name}: code in double backticks"


def test_links_lead_somewhere(pages: dict[Path, str]):
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert (
                target.startswith("https://")
                or (path.parent / target).resolve() in pages
                or (path.parent / target).exists()
            ), f"{path.name}: {target}"


def test_tables_are_whole(pages: dict[Path, str]):
    """Every line of a table has as many cells as its head."""
    for path, text in pages.items():
        head = None
        for line in text.splitlines():
            if not line.startswith("|"):
                head = None
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            head = head or cells
            assert cells == head, f"{path.name}: {line}"


@pytest.mark.parametrize("name", METHODS)
def test_the_command_of_a_page_is_right(name: str, pages: dict[Path, str], repository: Path):
    page = pages[repository / "docs" / "methods" / f"{name}.md"]
    code = re.search(r"```sh\njaxalign (.*?)\n```", page, re.DOTALL)
    assert code is not None
    args = parse(shlex.split(code[1].replace("\\\n", " ")))
    assert args.problems == []
    assert load(str(repository / args.config), args.overrides).method.name.endswith(name)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_the_row_of_a_page_is_what_the_method_reads(method: Method, pages: dict[Path, str], repository: Path):
    page = pages[repository / "docs" / "methods" / f"{method.name}.md"]
    code = re.search(r"```json\n(.*?)\n```", page, re.DOTALL)
    assert code is not None
    given = LAYOUT_COLUMNS[method.layout.name.lower()]
    wanted = [name for name in method.columns if name in given and name not in ("desirable", *MADE)]
    (record,) = normalise(json.loads(code[1]), Where("page", 1), wanted=wanted)
    assert [name for name in wanted if name not in record.columns] == []
    assert (record.label is None) == (method.layout is not Layout.UNPAIRED)
    assert len(record.completions) == {Layout.PAIRED: 2, Layout.RANKED: 3}.get(method.layout, 1)


def test_differences_are_collected(generator: ModuleType):
    """Statements come from bodies and parameters; one that stands in two docstrings is told once."""
    text = generator.differences_page()
    assert text.count("mean length is that of the global batch") == 1
    assert "[ipo](methods/ipo.md) | Paper and code disagree:" in text
    assert "`label_smoothing`: the share of preference labels assumed to be flipped (in the authors' code" in text


def test_prose_becomes_markdown(generator: ModuleType):
    assert generator.prose("``rewards/*`` and a * b < c, `x` of arXiv 2305.18290.") == (
        "`rewards/*` and a \\* b \\< c, `x` of [arXiv 2305.18290](https://arxiv.org/abs/2305.18290)."
    )
    assert generator.prose("the *other* form") == "the _other_ form"
    assert generator.cell("``|y|`` < 1") == "`\\|y\\|` \\< 1"


def test_every_method_has_a_group():
    assert [method.name for _, methods in grouped() for method in methods if group_of(method) not in GROUPS] == []
    assert sum(len(methods) for _, methods in grouped()) == len(METHODS)
    titles = {name: group_of(METHODS[name]).title for name in ("sft", "dpo", "simpo", "kto")}
    assert titles == {
        "sft": "Imitation",
        "dpo": "Pairs, measured against a reference",
        "simpo": "Pairs, without a reference",
        "kto": "Labelled completions",
    }


def test_groups_by_what_is_read():
    """Tokens, ranks and heads, on rows made for it."""

    def by_tokens(policy, reference, token_mask): ...
    def ranked(policy, scores): ...
    def scorer(rewards): ...
    def degrees(degree_logits, degrees): ...

    rows: dict[str, Method] = {
        "Pairs, measured against a reference, token by token": Method("a", by_tokens, Layout.PAIRED),
        "Ranked completions": Method("b", ranked, Layout.RANKED),
        "Reward models": Method("c", scorer, Layout.PAIRED, head=1),
        "Auxiliary losses": Method("d", degrees, Layout.PAIRED, head=2),
        "Pairs, measured against a reference": get_method("dpo + 0.1*spo"),
    }
    assert {title: group_of(method).title for title, method in rows.items()} == {title: title for title in rows}


def test_printed_table_is_narrow():
    lines = table().splitlines()
    assert max(map(len, lines)) <= 120
    for name in METHODS:
        assert len([line for line in lines if line.startswith(f"{name} ")]) == 1
    some = table({"cpo": METHODS["cpo"]})
    options = " ".join(line[some.splitlines()[0].index("options") :].strip() for line in some.splitlines()[3:])
    assert options == "beta=0.1 nll_coefficient=1.0 nll_normalization=batch_tokens label_smoothing=0.0"


def test_description_fits_a_terminal():
    for method in METHODS.values():
        text = describe(method)
        formula = read_docstring(method.objective).formula.splitlines()
        assert all(f"  {line}".rstrip() in text for line in formula)
        prose = [line for line in text.splitlines()[1:] if line.strip() not in {part.strip() for part in formula}]
        assert max(map(len, prose)) <= 120, method.name


def test_only_one_layout():
    assert set(with_data("unpaired")) == {name for name, method in METHODS.items() if method.layout is Layout.UNPAIRED}
    with pytest.raises(ConfigError, match=r"got 'pared', expected one of single, paired.*Did you mean 'paired'\?"):
        with_data("pared")


def test_docstrings_in_parts():
    def function():
        """Does it.

        ::

          loss = 1

          more = 2

        First
        paragraph::

            code

        * one
          item
        * two

        Args:
          first: what
            it is.
          **rest: others.

        Returns:
          Nothing.

          At all.
        """

    text = read_docstring(function)
    assert text.summary == "Does it."
    assert text.formula == "loss = 1\n\nmore = 2"
    assert text.meaning == (
        Block("text", "First paragraph:"),
        Block("code", "code"),
        Block("list", "* one item\n* two"),
    )
    assert text.items("Args") == {"first": "what it is.", "rest": "others."}
    assert text.sections["Returns"] == "Nothing.\n\nAt all."
    assert blocks("") == ()
