"""Writes the documents that follow from the methods: ``python docs/generate.py``; with ``--check`` it only compares.

One page for each method (docs/methods/NAME.md), their index, docs/differences.md, and the table in README.md. Their
texts are those of the rows of METHODS and of the docstrings of the objectives: to change a page, change those.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax

from jaxalign import objectives
from jaxalign.config_transport import read
from jaxalign.data.columns import LAYOUT_COLUMNS, MADE, SPELLINGS
from jaxalign.docstrings import Block, Docstring, read_docstring
from jaxalign.errors import ConfigError
from jaxalign.method import INPUTS, Layout, Method
from jaxalign.method_text import Group, facts, group_of, grouped, in_one_line, option_text
from jaxalign.methods import METHODS
from jaxalign.transforms import TRANSFORMS
from tests.method_inputs import make_inputs

WRITTEN = "<!-- Written by docs/generate.py from the docstrings and the table of methods. Change those instead. -->"
START, END = "<!-- methods: written by docs/generate.py -->", "<!-- end of methods -->"

DISAGREE = re.compile(r"^Papers? and (the )?(authors' )?code (disagree|differ)")
DIFFERENCE = re.compile(
    r"\bTRL\b|\bHALOs\b|[Pp]apers? and (the )?(authors' )?code|authors'|\bofficial\b|\bin the paper\b"
)
UNVERIFIED = re.compile(r"not (been )?(verified|checked)|not against the paper|from memory")

CONFIGS = {Layout.SINGLE: "sft", Layout.PAIRED: "paired", Layout.UNPAIRED: "unpaired", Layout.RANKED: "ranked"}
ROWS: dict[Layout, dict[str, Any]] = {
    Layout.SINGLE: {"prompt": "Name a river.", "completion": "The Rhine."},
    Layout.PAIRED: {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "A river."},
    Layout.UNPAIRED: {"prompt": "Name a river.", "completion": "The Rhine.", "label": True},
    Layout.RANKED: {"prompt": "Name a river.", "completions": ["The Rhine.", "A river.", "No."], "scores": [9, 4, 1]},
}
"""A row of the data of each layout."""
COLUMNS: dict[tuple[Layout, str], dict[str, Any]] = {
    (Layout.SINGLE, "token_weights"): {"token_weights": [1, 1, 0.5, 1]},
    (Layout.SINGLE, "step_labels"): {
        "prompt": "What is 2 + 3 * 4?",
        "completion": None,
        "completions": ["3 * 4 = 12.", "2 + 12 = 15."],
        "labels": [True, False],
    },
    (Layout.PAIRED, "scores"): {"score_chosen": 9, "score_rejected": 4},
    (Layout.PAIRED, "win_probabilities"): {"chosen_win_probability": 0.8, "rejected_win_probability": 0.3},
    (Layout.PAIRED, "preference"): {"preference": 0.8},
    (Layout.PAIRED, "absolute"): {"absolute": True},
    (Layout.PAIRED, "token_weights"): {
        "chosen_token_weights": [1, 1, 0.5, 1],
        "rejected_token_weights": [1, 1, 1, 1],
    },
    (Layout.RANKED, "win_probabilities"): {"win_probabilities": [0.8, 0.4, 0.1]},
}
"""What a row has beside these where a method reads the column."""


def documents() -> dict[Path, str]:
    """Every generated document with its text; README.md with its table renewed."""
    pages = {ROOT / "docs" / "methods" / f"{name}.md": method_page(method) for name, method in METHODS.items()}
    pages[ROOT / "docs" / "methods" / "README.md"] = index_page()
    pages[ROOT / "docs" / "differences.md"] = differences_page()
    readme = ROOT / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"README.md has lost its markers {START} and {END}.")
    pages[readme] = f"{before}{START}\n{readme_table()}\n{END}{after}"
    return pages


def stale() -> list[Path]:
    """The documents that are not as they would be written, and the pages of methods that are gone."""
    pages = documents()
    changed = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return changed + [path for path in (ROOT / "docs" / "methods").glob("*.md") if path not in pages]


# Pages.


def method_page(method: Method) -> str:
    """The page of one method."""
    text = read_docstring(method.objective)
    notes = [block for block in text.meaning if DISAGREE.match(block.text)]
    links = [linked(method.paper), f"[{_module(method)}](../../{_module(method)})", "[all methods](README.md)"]
    parts = [
        WRITTEN,
        f"# {method.name}",
        prose(in_one_line(method)),
        " · ".join(filter(None, links)),
        "## Formula",
        f"```text\n{text.formula}\n```",
        "[What the symbols mean](README.md#symbols)",
        *(markdown(block) for block in text.meaning if block not in notes),
        "## Data and inputs",
        "\n".join(f"- {name}: {prose(value)}" for name, value in data_facts(method).items()),
        f"A row of the data:\n\n```json\n{json.dumps(data_row(method))}\n```" if method.layout in ROWS else "",
        "What the objective is given, by the names of its positional parameters:",
        table(("input", "is"), ((f"`{name}`", INPUTS[name].meaning) for name in method.inputs)),
        "## Options",
        options_table(method, text) if method.options else "None.",
        "## Run it",
        f"```sh\n{command(method)}\n```",
        "## Results",
        *(markdown(Block("text", " ".join(part.split()))) for part in text.sections.get("Returns", "").split("\n\n")),
        f"Metrics in `metrics.jsonl`, beside `loss`: {', '.join(f'`{name}`' for name in metric_names(method))}.",
        *(["## Where paper and code disagree", *(markdown(block) for block in notes)] if notes else []),
        *(["## Sources", prose(text.sections["References"])] if "References" in text.sections else []),
        *example(text),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index_page() -> str:
    """The methods by kind, and by the module of their objective within a kind."""
    symbols = read_docstring(objectives).body[-1].text.removeprefix("Symbols in the formulas: ")
    parts = [
        WRITTEN,
        "# Methods",
        "Grouped by the questions of the survey of DPO ([arXiv 2410.15595](https://arxiv.org/abs/2410.15595)) that a "
        "method's signature answers: which feedback, which reference, implicit or explicit rewards, whole completions "
        "or single tokens. `jaxalign methods` prints the same, `jaxalign methods NAME` one of them. Where they differ "
        "from their papers and from TRL: [differences](../differences.md).",
        *(part for group, members in grouped() for part in _index_group(group, members)),
        "## Combinations",
        "`method.name` takes expressions as well: weighted sums, `0.8*dpo + 0.2*bco_pair + nll`, and transforms of a "
        "method, `ld(simpo)`, `soft(ipo) + 0.1*nll`. Each term of a sum has its options under its name, `dpo_beta`; "
        "`jaxalign methods 'ld(simpo) + 0.1*nll'` shows them. The likelihood of the chosen completion (`nll`) and the "
        "degrees of damage (`spo`) are methods made to be added.",
        table(("transform", "what it is", "adds"), (_transform_row(name) for name in TRANSFORMS)),
        "## Symbols",
        prose(symbols[0].upper() + symbols[1:]),
    ]
    return "\n\n".join(parts) + "\n"


def _index_group(group: Group, members: list[Method]) -> Iterator[str]:
    yield f"## {group.title}"
    yield prose(group.text)
    modules = dict.fromkeys(method.objective.__module__ for method in members)
    for module in modules:
        if len(modules) > 1:
            yield prose(read_docstring(sys.modules[module]).summary)
        yield table(
            ("method", "what it is", "reads", "options", "paper"),
            (
                (
                    f"[{method.name}]({method.name}.md)",
                    in_one_line(method),
                    _reads(method),
                    ", ".join(f"`{name}={option_text(option)}`" for name, option in method.options.items()) or "-",
                    linked(method.paper) or "-",
                )
                for method in members
                if method.objective.__module__ == module
            ),
        )


def _transform_row(name: str) -> tuple[str, str, str]:
    """A transform by what it makes of the first method that it takes."""
    for base in ("dpo", "ipo"):
        try:
            method = TRANSFORMS[name](METHODS[base])
        except TypeError:
            continue
        new = (option for option in method.options if option not in METHODS[base].options)
        columns = (column for column in method.columns if column not in METHODS[base].columns)
        added = [*(f"`{option}`" for option in new), *(f"the column `{column}`" for column in columns)]
        return f"`{name}({base})`", prose(method.summary), ", ".join(added) or "-"
    raise LookupError(f"{name} takes none of the methods tried here")


def _reads(method: Method) -> str:
    words = [method.logps.name.lower() + "s" if "policy" in method.inputs else "head"]
    words += ["live reference" if method.needs_live_reference else "reference"] if method.needs_reference else []
    words += ["whole batch"] if method.batch_coupled else []
    return ", ".join(words)


def differences_page() -> str:
    """What the docstrings say of papers, authors' code and TRL."""
    differing: dict[str, list[str]] = {}
    unverified: dict[str, list[str]] = {}
    for method in METHODS.values():
        for source, said in _statements(read_docstring(method.objective)):
            if UNVERIFIED.search(said):
                unverified.setdefault(said, []).append(method.name)
            elif source != "References" and DIFFERENCE.search(said):
                differing.setdefault(said, []).append(method.name)
    parts = [
        WRITTEN,
        "# Differences from papers, authors' code and TRL",
        "Papers, the code of their authors and the libraries do not always compute the same. Each docstring says what "
        "is computed here and where others differ; these are their words. Where an option gives the other form, it is "
        "named. The [pages of the methods](methods/README.md) have the formulas.",
        _statement_table("what differs, and what is done here", differing),
        "## What was not checked against its paper",
        "These statements rest on the authors' code, on TRL or on derivation.",
        _statement_table("statement", unverified),
    ]
    return "\n\n".join(parts) + "\n"


def _statement_table(title: str, said: dict[str, list[str]]) -> str:
    """Statements with the methods that they are about; one that several docstrings make stands once."""
    rows = ((", ".join(f"[{name}](methods/{name}.md)" for name in names), text) for text, names in said.items())
    return table(("method", title), rows) if said else "None."


def _statements(text: Docstring) -> Iterator[tuple[str, str]]:
    """Paragraphs of the body, descriptions of parameters, and the references, each with where it stands."""
    yield from (("body", block.text) for block in text.meaning if block.kind != "code")
    yield from (("Args", f"`{name}`: {said}") for name, said in text.items("Args").items())
    for section in ("Returns", "References"):
        yield from ((section, " ".join(part.split())) for part in text.sections.get(section, "").split("\n\n"))


def readme_table() -> str:
    """The methods for README.md, a line each."""
    lines = ["| method | what it is | paper |", "|---|---|---|"]
    for group, members in grouped():
        lines.append(f"| **{group.title}** | | |")
        for method in members:
            cells = (f"[{method.name}](docs/methods/{method.name}.md)", in_one_line(method), linked(method.paper) or "")
            lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


# Parts of pages.


def data_facts(method: Method) -> dict[str, str]:
    """The facts of a method, with what data rows call the columns that it reads."""
    found = facts(method)
    found.pop("paper", None)
    if method.columns:
        in_rows = {*LAYOUT_COLUMNS.get(method.layout.name.lower(), ())} - {*MADE}
        called = {name: "made when the data is made ready" for name in method.columns if name not in in_rows}
        called |= SPELLINGS if method.layout is Layout.PAIRED else {}
        columns = (f"`{name}`" + (f" ({called[name]})" if name in called else "") for name in method.columns)
        found["columns"] = "; ".join(columns)
    return found


def data_row(method: Method) -> dict[str, Any]:
    """A row of data that the method can learn from."""
    row = dict(ROWS[method.layout])
    for column in method.columns:
        row |= COLUMNS.get((method.layout, column), {})
    return {name: value for name, value in row.items() if value is not None}


def options_table(method: Method, text: Docstring) -> str:
    """Options with defaults, ranges and meanings."""
    meanings = text.items("Args")
    return table(
        ("option", "default", "accepts", "meaning"),
        (
            (f"`{name}`", f"`{option_text(option)}`", option.expected, meanings.get(name, ""))
            for name, option in method.options.items()
        ),
    )


def example(text: Docstring) -> Iterator[str]:
    """The worked example: words, then code."""
    if "Example" not in text.sections:
        return
    words, prompt, code = text.sections["Example"].partition(">>>")
    yield "## Example"
    yield prose(" ".join(words.split()))
    yield f"```pycon\n{prompt}{code}\n```"


def command(method: Method) -> str:
    """A command that trains with the method: its own configuration, if a file of configs/ takes its name."""
    stem = CONFIGS.get(method.layout, "paired")
    first = ["reward", stem] if method.head else [stem]
    known = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("common", "quickstart"))
    taken = [name for name in dict.fromkeys([*first, *known]) if name in known and _takes(name, method)]
    if method.name == "sft":
        config = "configs/sft.py"
    elif method.name == "process_reward_model":
        config = "configs/steps.py"
    elif method.head and group_of(method).title == "Auxiliary losses":
        config = f"configs/paired.py '--config.method.name=dpo + 0.1*{method.name}'"
    elif taken:
        config = f"configs/{taken[0]}.py:{method.name}"
    else:
        config = f"configs/{'sft' if stem == 'sft' else 'paired'}.py --config.method.name={method.name}"
    return (
        f"jaxalign train --config={config} --config.model.path=MODEL \\\n"
        f"    --config.data.train=data.jsonl --config.data.eval_size=100 --workdir=runs/{method.name}"
    )


def _takes(stem: str, method: Method) -> bool:
    try:
        return read(f"{ROOT}/configs/{stem}.py:{method.name}")["method"]["name"] == method.name
    except ConfigError:
        return False


def metric_names(method: Method) -> list[str]:
    """The metrics of the objective, found by calling it on shapes."""
    options = method.resolve_options({})
    output = jax.eval_shape(lambda inputs: method.loss(inputs, options), make_inputs(method))
    return sorted(output.metrics)


def _module(method: Method) -> str:
    return method.objective.__module__.replace(".", "/") + ".py"


# Markdown.


def markdown(block: Block) -> str:
    """A block of a docstring as Markdown."""
    return f"```text\n{block.text}\n```" if block.kind == "code" else prose(block.text)


def prose(text: str) -> str:
    """Docstring text as Markdown: code in single backticks, arXiv numbers as links, nothing else special."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text)
    done = [piece.replace("``", "`") if i % 2 else _plain(piece) for i, piece in enumerate(pieces)]
    return "".join(done)


def _plain(text: str) -> str:
    text = re.sub(r"(?<![\w*])\*(\w[\w -]*)\*(?![\w*])", r"_\1_", text)  # *emphasis*
    return linked(re.sub(r"([*<])", r"\\\1", text))


def linked(text: str) -> str:
    """The text with arXiv numbers as links to their abstracts."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def cell(text: str) -> str:
    """Text in one line, for a cell of a table."""
    text = text if "](" in text else prose(text)  # links are made before
    return " ".join(text.split()).replace("|", "\\|")


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(map(cell, row))} |" for row in rows])


def main(arguments: list[str]) -> int:
    """Writes or, with ``--check``, compares. Returns the exit code: 1 for a document that is not fresh."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    old = stale()
    if arguments:
        for path in old:
            print(f"{path.relative_to(ROOT)} is stale: run python docs/generate.py", file=sys.stderr)
        return 1 if old else 0
    pages = documents()
    for path in old:
        if path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8")
        else:
            path.unlink()
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
