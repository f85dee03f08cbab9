"""The methods as text, for the command and for the documents: their groups, their table, and one of them in full.

Everything is read from the rows of `METHODS` and from the docstrings of the objectives.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jaxalign.docstrings import Block, Docstring, read_docstring
from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.method import INPUTS, Layout, Logps, Method, Option
from jaxalign.methods import METHODS, get_method
from jaxalign.transforms import TRANSFORMS

WIDTH = 120
"""Columns of the printed table."""


@dataclass(frozen=True)
class Group:
    """Methods that answer the same questions alike.

    Attributes:
      title: its heading.
      text: what its methods have in common.
      holds: whether a method belongs to it, if to no group before.
    """

    title: str
    text: str
    holds: Callable[[Method], bool]


def _sees_tokens(method: Method) -> bool:
    return method.logps is Logps.TOKEN or any(INPUTS[name].per == "token" for name in method.inputs)


def _is_head_alone(method: Method) -> bool:
    """Whether a head learns and the language model's own probabilities do not count."""
    return bool(method.head) and "policy" not in method.inputs


GROUPS = (
    Group(
        "Imitation",
        "One completion, and it is right.",
        lambda m: m.layout is Layout.SINGLE and not _is_head_alone(m),
    ),
    Group(
        "Pairs, measured against a reference",
        "The implicit reward is a function of the log-ratio of policy and reference, for a completion as a whole.",
        lambda m: m.layout is Layout.PAIRED and m.needs_reference and not _is_head_alone(m) and not _sees_tokens(m),
    ),
    Group(
        "Pairs, measured against a reference, token by token",
        "The same with a say for each token: its log-ratio, its place, or statistics of its distribution.",
        lambda m: m.layout is Layout.PAIRED and m.needs_reference and not _is_head_alone(m),
    ),
    Group(
        "Pairs, without a reference",
        "The policy alone is scored; a margin or the likelihood of the chosen completion stands in for the reference.",
        lambda m: m.layout is Layout.PAIRED and not _is_head_alone(m),
    ),
    Group(
        "Labelled completions",
        "Point-wise feedback: a completion is desirable or not, and there are no pairs.",
        lambda m: m.layout is Layout.UNPAIRED and not _is_head_alone(m),
    ),
    Group(
        "Ranked completions",
        "List-wise feedback: K completions of a prompt, with scores.",
        lambda m: m.layout is Layout.RANKED and not _is_head_alone(m),
    ),
    Group("Samples of the policy", "Completions are sampled during training.", lambda m: m.layout is Layout.SAMPLED),
    Group(
        "Reward models",
        "Explicit rewards: a linear head learns to score completions or steps, and the result judges them.",
        lambda m: not {"rewards", "step_logits"}.isdisjoint(m.inputs),
    ),
    Group(
        "Auxiliary losses",
        "A head learns something else about completions, and the policy with it; to be added to another method.",
        _is_head_alone,
    ),
)
"""By the questions of the survey of DPO (arXiv 2410.15595) that a row answers: which feedback, which reference, whether
rewards are implicit or explicit, and at which granularity. A method belongs to the first group that holds it."""


def grouped(methods: Mapping[str, Method] = METHODS) -> list[tuple[Group, list[Method]]]:
    """The groups that have methods, each with its methods in the order of the table.

    Raises:
      ValueError: a method belongs to no group.
    """
    found: dict[str, list[Method]] = {group.title: [] for group in GROUPS}
    for method in methods.values():
        found[group_of(method).title].append(method)
    return [(group, found[group.title]) for group in GROUPS if found[group.title]]


def group_of(method: Method) -> Group:
    """The group of a method.

    Raises:
      ValueError: it belongs to none.
    """
    for group in GROUPS:
        if group.holds(method):
            return group
    raise ValueError(f"Method {method.name!r} belongs to no group of method_text.GROUPS.")


def with_data(layout: str, methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """The methods that learn from this layout of data, by its name in small letters.

    Raises:
      ConfigError: there is no such layout.
    """
    known = [one.name.lower() for one in Layout]
    if layout not in known:
        raise ConfigError(f"--data: got {layout!r}, expected one of {', '.join(known)}.{did_you_mean(layout, known)}")
    return {name: method for name, method in methods.items() if method.layout.name.lower() == layout}


def table(methods: Mapping[str, Method] = METHODS, *, width: int = WIDTH) -> str:
    """The methods by group: data, form of the log-probabilities, reference, paper, options with defaults; as text.

    Args:
      methods: what to list.
      width: columns; options that do not fit go on in the next line.
    """
    groups = grouped(methods)
    head = ("name", "data", "logps", "reference", "paper")
    rows = {method.name: _cells(method) for _, members in groups for method in members}
    widths = [max(len(row[column]) for row in (head, *rows.values())) for column in range(len(head))]
    room = max(30, width - sum(widths) - 2 * len(head))

    def line(cells: tuple[str, ...], options: list[str]) -> Iterator[str]:
        start = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
        yield f"{start}  {options[0]}".rstrip()
        yield from (" " * (len(start) + 2) + more for more in options[1:])

    lines = list(line(head, ["options"]))
    for group, members in groups:
        lines += ["", group.title.upper()]
        for method in members:
            pairs = [f"{name}={option_text(option)}" for name, option in method.options.items()]
            lines += line(rows[method.name], _wrapped(pairs, room))
    return "\n".join(lines)


def transform_table(width: int = WIDTH) -> str:
    """The transforms, a line each, as they stand in an expression."""
    entries = {f"{name}(METHOD)": _example(name)[1] for name in TRANSFORMS}
    return "\n".join(["TRANSFORMS, which make a method of a method", *_entries(entries, width)])


def describe_transform(name: str, *, width: int = WIDTH) -> str:
    """A transform in full, by its name in an expression, with what it makes of one method."""
    made, summary = _example(name)
    transform = TRANSFORMS[name]
    text = read_docstring(getattr(transform, "func", transform))  # several are one function's
    lines = [f"{name}(METHOD): {summary}", "", *_paragraphs(text.body, width), "for example", "", describe(made)]
    return "\n".join(lines).replace("``", "`")


def _example(name: str) -> tuple[Method, str]:
    """What a transform makes of a method, and what it says of any."""
    of = "ipo" if name == "summed" else "dpo"
    made = get_method(f"{name}({of})")
    return made, made.summary.replace(of, "METHOD", 1)


def _cells(method: Method) -> tuple[str, ...]:
    reference = "live" if method.needs_live_reference else "yes" if method.needs_reference else "-"
    logps = method.logps.name.lower() if "policy" in method.inputs else "-"
    return method.name, method.layout.name.lower(), logps, reference, method.paper or "-"


def _wrapped(words: list[str], room: int) -> list[str]:
    """Words in lines of at most `room` characters, whole words only."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines if words else ["-"]


def describe(method: Method, *, width: int = WIDTH) -> str:
    """One method in full as text: data, formula, inputs, options with defaults and ranges, meaning, sources."""
    text = read_docstring(method.objective)
    meanings = text.items("Args")
    lines = [
        f"{method.name}: {in_one_line(method)}",
        "",
        *(f"{name:<11}{value}" for name, value in facts(method).items()),
        "",
        "formula",
        *(f"  {line}".rstrip() for line in text.formula.splitlines() or ["none"]),
        "",
        "inputs",
        *_entries({name: INPUTS[name].meaning for name in method.inputs}, width),
        "",
        "options",
        *_entries(
            {
                f"{name} = {option_text(option)}": "; ".join(filter(None, (option.expected, meanings.get(name))))
                for name, option in method.options.items()
            },
            width,
        ),
        *([] if method.options else ["  none"]),
        "",
        *_paragraphs(text.meaning, width),
        *_section(text, "Returns", "results", width),
        *_section(text, "References", "sources", width),
    ]
    return "\n".join(lines).rstrip().replace("``", "`")


def in_one_line(method: Method) -> str:
    """The summary of a method; for a row that gives another row's objective other numbers, also which."""
    name = getattr(method.objective, "__name__", method.name)
    if name == method.name or sum(row.objective is method.objective for row in METHODS.values()) < 2:
        return method.summary
    form = {Logps.SUM: "sums over tokens", Logps.MEAN: "means over tokens", Logps.TOKEN: "single tokens"}
    return f"{method.summary.rstrip('.')}; the objective `{name}` on {form[method.logps]}."


def facts(method: Method) -> dict[str, str]:
    """What the row says of a method, in words."""
    found = {"paper": method.paper} if method.paper else {}
    found["kind"] = group_of(method).title
    found["data"] = f"{method.layout.name.lower()}: {method.layout.value}"
    if method.columns:
        found["columns"] = ", ".join(method.columns)
    if "policy" in method.inputs:
        found["logps"] = method.logps.value
    found["reference"] = "none"
    if method.needs_reference:
        found["reference"] = "needed, as a model that runs beside" if method.needs_live_reference else "needed"
    if method.head:
        outputs = f"as many outputs as the option {method.head} says" if isinstance(method.head, str) else method.head
        found["head"] = f"a linear head on the policy's hidden states: {outputs}" + (
            "" if isinstance(method.head, str) else " output" + "s" * (method.head != 1)
        )
    found["coupled"] = "the loss of an example depends on the whole batch" if method.batch_coupled else "no"
    if method.state:
        found["keeps"] = ", ".join(f"{name} (from {value:g})" for name, value in method.state.items())
    return found


def option_text(option: Option) -> str:
    """The default of an option as one writes it in a configuration."""
    return str(option.default).lower() if isinstance(option.default, bool) else str(option.default)


def _entries(items: Mapping[str, str], width: int) -> Iterator[str]:
    """Names with their texts beside them."""
    column = min(max((len(name) for name in items), default=0) + 2, 40)
    for name, text in items.items():
        first, *more = textwrap.wrap(text, width - 2 - column) or [""]
        yield f"  {name:<{column}}{first}".rstrip()
        yield from (" " * (2 + column) + line for line in more)


def _paragraphs(found: tuple[Block, ...], width: int) -> Iterator[str]:
    for block in found:
        if block.kind == "code":
            yield from (f"  {line}".rstrip() for line in block.text.splitlines())
        else:
            for line in block.text.splitlines():
                yield from textwrap.wrap(line, width, subsequent_indent="  " if block.kind == "list" else "")
        yield ""


def _section(text: Docstring, name: str, title: str, width: int) -> Iterator[str]:
    if text.sections.get(name):
        yield title
        for paragraph in text.sections[name].split("\n\n"):
            yield from textwrap.wrap(" ".join(paragraph.split()), width, initial_indent="  ", subsequent_indent="  ")
        yield ""
