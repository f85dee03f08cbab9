"""The table of methods: one explicit row each, everything else is read from the objective's signature.

A row says what a signature cannot: the layout of the data, the form of the log-probabilities, the paper. The
positional parameters of the objective are its inputs (their vocabulary is `INPUTS`), its keyword-only parameters are
its options with types, ranges and defaults. A method from elsewhere is named ``"package.module:NAME"``.
"""

import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from types import MappingProxyType
from typing import Annotated, Any, Literal

from jaxalign import objectives
from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.objectives import Range
from jaxalign.types import LossOutput, Pair


class Layout(Enum):
    """What one example of a method is."""

    SINGLE = "a prompt and its completion"
    PAIRED = "a prompt with a chosen and a rejected completion"
    UNPAIRED = "a prompt and a completion labelled desirable or not"
    RANKED = "a prompt and K completions with scores"
    SAMPLED = "a prompt whose completions are sampled during training"


class Logps(Enum):
    """The form in which an objective gets log-probabilities."""

    SUM = "summed over the completion's scored tokens, nats"
    MEAN = "mean over the completion's scored tokens, nats per token"
    TOKEN = "of each scored token, nats"


@dataclass(frozen=True)
class Input:
    """What an objective may ask of the train step by naming a positional parameter.

    Attributes:
      meaning: shape and unit, for the printed description.
      reference: whether a reference policy must supply it.
      layouts: the layouts that have it; None = all.
    """

    meaning: str
    reference: bool = False
    layouts: tuple[Layout, ...] | None = None


INPUTS: Mapping[str, Input] = MappingProxyType(
    {
        "policy": Input("the policy's log-probabilities"),
        "reference": Input("the reference's log-probabilities, shaped like policy", reference=True),
        "lengths": Input("scored tokens of each completion, shaped like policy"),
        "mean_lengths": Input("means of lengths over the valid examples of the global batch"),
        "example_mask": Input("[B] bool, False where the batch has no example"),
        "desirable": Input("[B] bool, the label", layouts=(Layout.UNPAIRED,)),
        "mismatched_policy": Input(
            "[B] the policy's log-probabilities of another example's completion", layouts=(Layout.UNPAIRED,)
        ),
        "mismatched_reference": Input("[B] the same of the reference", reference=True, layouts=(Layout.UNPAIRED,)),
    }
)


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of an objective.

    Attributes:
      type: `float`, `int`, `bool` or `str`.
      default: its default value.
      range: bounds of a number, or None.
      choices: the allowed values of a `Literal`, or None.
    """

    type: type
    default: Any
    range: Range | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices is not None:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        if self.type is bool:
            return "true or false"
        kind = {float: "a finite number", int: "an integer", str: "a string"}[self.type]
        return kind if self.range is None else f"{kind} {self.range}"

    def accepts(self, value: Any) -> bool:
        """Whether the value has the type, is finite, and lies in the range or among the choices."""
        if self.choices is not None:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if self.type in (bool, str):
            return isinstance(value, self.type)
        if isinstance(value, bool) or not isinstance(value, Integral if self.type is int else Real):
            return False
        return math.isfinite(value) and (self.range is None or float(value) in self.range)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      name: what users write.
      objective: the pure function; see `jaxalign.objectives`.
      layout: what one example is.
      logps: the form of ``policy`` and ``reference``.
      batch_coupled: the loss of one example depends on the policy's values for others, so micro-batches must not be
        treated as batches of their own.
      paper: where the method is from.

    Raises:
      TypeError: when created, if the objective's signature breaks the contract: an unknown input, an input that the
        layout does not have, an option without a default or of an unsupported type.
    """

    name: str
    objective: Callable[..., LossOutput]
    layout: Layout
    logps: Logps = Logps.SUM
    batch_coupled: bool = False
    paper: str = ""

    def __post_init__(self):
        problems = []
        for name in self.inputs:
            known = INPUTS.get(name)
            if known is None:
                hint = did_you_mean(name, INPUTS) or " An option belongs after the '*'."
                problems.append(f"unknown input {name!r}; the train step can supply {', '.join(INPUTS)}.{hint}")
            elif known.layouts is not None and self.layout not in known.layouts:
                problems.append(f"the layout {self.layout.name} has no input {name!r}.")
        if "policy" not in self.inputs:
            problems.append("no input 'policy', so there is nothing to train.")
        for parameter in inspect.signature(self.objective).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                problems.append(f"{parameter} hides what is needed; name every input and option.")
        try:
            for name, option in self.options.items():
                if not option.accepts(option.default):
                    problems.append(
                        f"option {name!r} has the default {option.default!r}, which is not {option.expected}."
                    )
        except TypeError as error:
            problems.append(str(error))
        if problems:
            raise TypeError(f"Method {self.name!r}: " + " ".join(problems))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the train step must supply, in the order of the signature."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.objective).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind in positional)

    @property
    def options(self) -> dict[str, Option]:
        """The method's own hyper-parameters by name, in the order of the signature."""
        hints = _hints(self.objective)
        return {
            parameter.name: _option(parameter.name, hints.get(parameter.name), parameter.default)
            for parameter in inspect.signature(self.objective).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy must be there."""
        return any(INPUTS[name].reference for name in self.inputs)

    @property
    def summary(self) -> str:
        """The first line of the objective's docstring."""
        return (inspect.getdoc(self.objective) or "").partition("\n")[0]

    def check_options(self, options: Mapping[str, Any], *, where: str = "method") -> list[str]:
        """All problems of the given options, one line each; empty when they are right.

        Args:
          options: values by name; absent options keep their defaults.
          where: the place in the configuration, for the messages.
        """
        known = self.options
        problems = []
        for name, value in options.items():
            if name not in known:
                has = f"its options are {', '.join(known)}" if known else "it has none"
                problems.append(f"{where}.{name}: {self.name} has no such option; {has}.{did_you_mean(name, known)}")
            elif not known[name].accepts(value):
                problems.append(f"{where}.{name}: got {value!r}, expected {known[name].expected}.")
        return problems

    def resolve_options(self, options: Mapping[str, Any], *, where: str = "method") -> dict[str, Any]:
        """All options, the defaults filled in, as plain Python values of their declared types.

        Raises:
          ConfigError: with all problems that `check_options` finds.
        """
        problems = self.check_options(options, where=where)
        if problems:
            raise ConfigError(problems)
        return {name: option.type(options.get(name, option.default)) for name, option in self.options.items()}

    def loss(self, inputs: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})) -> LossOutput:
        """Calls the objective with what it asks for.

        Args:
          inputs: arrays by input name; more than are needed may be there.
          options: option values by name, already checked.
        """
        return self.objective(*(inputs[name] for name in self.inputs), **options)


def _hints(objective: Callable) -> dict[str, Any]:
    """Annotations by parameter, `Annotated` kept. Those that cannot be evaluated are left out."""
    try:
        return typing.get_type_hints(objective, include_extras=True)
    except NameError:  # names imported under TYPE_CHECKING only
        return {name: hint for name, hint in inspect.get_annotations(objective).items() if not isinstance(hint, str)}


def _option(name: str, hint: Any, default: Any) -> Option:
    """Reads an option from its annotation; without one, the default tells the type.

    Raises:
      TypeError: no default, or a type that a configuration cannot hold.
    """
    if default is inspect.Parameter.empty:
        raise TypeError(f"option {name!r} needs a default.")
    hint = type(default) if hint is None else hint
    bounds = None
    if typing.get_origin(hint) is Annotated:
        hint, *metadata = typing.get_args(hint)
        bounds = next((item for item in metadata if isinstance(item, Range)), None)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        kinds = {type(choice) for choice in choices}
        if len(kinds) == 1:
            return Option(kinds.pop(), default, choices=choices)
    if hint not in (float, int, bool, str):
        raise TypeError(
            f"option {name!r} has the type {hint}; expected float, int, bool, str or a Literal of one type."
        )
    return Option(hint, default, bounds)


def _table(*methods: Method) -> Mapping[str, Method]:
    """The methods by name, read-only. Two of one name is an error, not the last one's victory."""
    named = {method.name: method for method in methods}
    if len(named) != len(methods):
        raise TypeError(f"Two methods share a name: {sorted(method.name for method in methods)}.")
    return MappingProxyType(named)


METHODS: Mapping[str, Method] = _table(
    Method("sft", objectives.sft, Layout.SINGLE),
    Method("dpo", objectives.dpo, Layout.PAIRED, paper="arXiv 2305.18290"),
    Method("ipo", objectives.ipo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2310.12036"),
    Method("cpo", objectives.cpo, Layout.PAIRED, paper="arXiv 2401.08417"),
    Method("simpo", objectives.simpo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2405.14734"),
    Method("kto", objectives.kto, Layout.UNPAIRED, batch_coupled=True, paper="arXiv 2402.01306"),
)


def get_method(name: str) -> Method:
    """The method of that name in `METHODS`, or ``"package.module:NAME"`` for one from elsewhere.

    NAME may be a `Method`, or an objective whose layout can be told from its signature: a ``policy`` annotated as
    `Pair` is PAIRED, an input ``desirable`` is UNPAIRED. It then gets summed log-probabilities and is not batch
    coupled.

    Raises:
      ConfigError: no such method, the module cannot be imported, or what it holds is not a method.
    """
    if ":" in name:
        return _foreign_method(name)
    if name not in METHODS:
        raise ConfigError(
            f"method.name: got {name!r}, expected one of {', '.join(METHODS)}, or 'package.module:NAME'."
            f"{did_you_mean(name.lower(), METHODS)}"
        )
    return METHODS[name]


def _foreign_method(name: str) -> Method:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"method.name: got {name!r}, but {module_name!r} cannot be imported ({error}). Is its folder on PYTHONPATH?"
        ) from error
    found = getattr(module, attribute, None)
    if isinstance(found, Method):
        return found
    if found is None:
        raise ConfigError(
            f"method.name: got {name!r}, but {module_name} has no {attribute!r}.{did_you_mean(attribute, vars(module))}"
        )
    if not isinstance(found, types.FunctionType):
        raise ConfigError(f"method.name: {name!r} is a {type(found).__name__}, expected a Method or a function.")
    layout = _layout(found)
    if layout is None:
        raise ConfigError(
            f"method.name: the layout of {name!r} cannot be told from its signature. Annotate policy as Pair, or make "
            f"it a row: NAME = Method({attribute!r}, {attribute}, Layout.SINGLE)."
        )
    try:
        return Method(name, found, layout)
    except TypeError as error:
        raise ConfigError(f"method.name: {error}") from error


def _layout(objective: Callable) -> Layout | None:
    policy = _hints(objective).get("policy")
    if policy is Pair or typing.get_origin(policy) is Pair:
        return Layout.PAIRED
    return Layout.UNPAIRED if "desirable" in inspect.signature(objective).parameters else None


def describe(method: Method) -> str:
    """A method's sources, data, inputs and options, then its formula and meaning, as text."""
    lines = [
        f"{method.name}: {method.summary}",
        "",
        *([f"paper      {method.paper}"] if method.paper else []),
        f"data       {method.layout.name.lower()}: {method.layout.value}",
        f"logps      {method.logps.value}",
        f"reference  {'needed' if method.needs_reference else 'none'}",
        f"coupled    {'the loss of an example depends on the whole batch' if method.batch_coupled else 'no'}",
        "",
        "inputs",
        *(f"  {name:<22}{INPUTS[name].meaning}" for name in method.inputs),
        "",
        "options",
        *(f"  {name + ' = ' + str(option.default):<34}{option.expected}" for name, option in method.options.items()),
        *([] if method.options else ["  none"]),
        "",
        (inspect.getdoc(method.objective) or "").partition("\n")[2].strip(),
    ]
    return "\n".join(lines).rstrip()


def table(methods: Mapping[str, Method] = METHODS) -> str:
    """One line a method: data, form of the log-probabilities, reference, options with defaults, paper; as text."""
    rows = [("name", "data", "logps", "reference", "options", "paper")]
    rows += [
        (
            method.name,
            method.layout.name.lower(),
            method.logps.name.lower(),
            "yes" if method.needs_reference else "-",
            " ".join(f"{name}={option.default}" for name, option in method.options.items()) or "-",
            method.paper or "-",
        )
        for method in methods.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
