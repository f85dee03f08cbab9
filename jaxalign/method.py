"""What a method is: an objective, and what its signature cannot say. The table of them is `jaxalign.methods`.

The positional parameters of the objective are its inputs (their vocabulary is `INPUTS`), its keyword-only parameters
are its options with types, ranges and defaults.
"""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral, Real
from types import MappingProxyType
from typing import Annotated, Any, Literal

from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.ranges import Range
from jaxalign.types import LossOutput


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


Per = Literal["batch", "example", "completion", "token"]


@dataclass(frozen=True)
class Input:
    """What an objective may ask of the train step by naming a positional parameter.

    Attributes:
      meaning: what it is and its unit, for the printed description; "bool, ..." for what is true or false.
      per: what there is one of it for. ``example``: ``[B]``. ``completion``: a `Pair` of ``[B]`` for PAIRED, ``[B]``
        for SINGLE and UNPAIRED, ``[B, K]`` for RANKED. ``token``: the same with one more axis N, 0 behind a
        completion's last token. ``batch``: see the meaning.
      reference: whether a reference policy must supply it.
      live: whether that reference must be a model that the step runs: its log-probabilities alone are not enough.
      layouts: the layouts that have it; None = all.
      column: whether it comes with the data.
      trains: whether a gradient flows back into the policy.
      head: whether a head of the method's own computes it.
    """

    meaning: str
    per: Per = "completion"
    reference: bool = False
    live: bool = False
    layouts: tuple[Layout, ...] | None = None
    column: bool = False
    trains: bool = False
    head: bool = False

    @property
    def is_bool(self) -> bool:
        """Whether it is true or false."""
        return self.meaning.startswith("bool")


_PAIRED, _SINGLE, _UNPAIRED, _RANKED = (Layout.PAIRED,), (Layout.SINGLE,), (Layout.UNPAIRED,), (Layout.RANKED,)

INPUTS: Mapping[str, Input] = MappingProxyType(
    {
        "policy": Input("the policy's log-probabilities", trains=True),
        "reference": Input("the reference's log-probabilities, shaped like policy", reference=True),
        "lengths": Input("scored tokens of each completion; 0 where a ranking has no such completion"),
        "mean_lengths": Input("means of lengths over the valid examples of the global batch, scalars", "batch"),
        "token_mask": Input("bool, True where the completion has such a token", "token"),
        "token_kl": Input(
            "KL(reference || policy) of the next token's distribution, nats",
            "token",
            reference=True,
            live=True,
            trains=True,
        ),
        "token_entropy": Input("entropy of the policy's next-token distribution, nats", "token", trains=True),
        "token_collision": Input("log of the sum over the vocabulary of the policy's p^2, no gradient", "token"),
        "example_mask": Input("bool, False where the batch has no example", "example"),
        "desirable": Input("bool, the label", "example", layouts=_UNPAIRED, column=True),
        "density_ratios": Input(
            "density of desirable completions' prompts over that of undesirable ones, at this prompt",
            "example",
            layouts=_UNPAIRED,
            column=True,
        ),
        "mismatched_policy": Input(
            "the policy's log-probabilities of another example's completion, no gradient", "example", layouts=_UNPAIRED
        ),
        "mismatched_reference": Input("the same of the reference", "example", reference=True, layouts=_UNPAIRED),
        "scores": Input(
            "the data's own score of each completion, in its unit", layouts=(*_PAIRED, *_RANKED), column=True
        ),
        "win_probabilities": Input(
            "probability that the completion beats one of the policy's own", layouts=(*_PAIRED, *_RANKED), column=True
        ),
        "preference": Input(
            "probability that the chosen completion is the better one", "example", layouts=_PAIRED, column=True
        ),
        "absolute": Input(
            "bool, the completions are right and wrong, not just better and worse",
            "example",
            layouts=_PAIRED,
            column=True,
        ),
        "marked": Input(
            "bool, tokens that the other completion of the pair does not have", "token", layouts=_PAIRED, column=True
        ),
        "token_weights": Input("the data's weight of each token", "token", column=True),
        "rewards": Input("a reward head's value at each completion's last token", trains=True, head=True),
        "step_logits": Input(
            "a head's logits of wrong and right at each token, with a last axis of 2", "token", trains=True, head=True
        ),
        "step_labels": Input(
            "1 where a right step ends, 0 where a wrong one does, -1 elsewhere", "token", layouts=_SINGLE, column=True
        ),
        "degree_logits": Input(
            "[B, M, C] a head's logits over degrees of damage, at the ends of the pair and of its damaged copies",
            "example",
            layouts=_PAIRED,
            trains=True,
            head=True,
        ),
        "degrees": Input(
            "[B, M] int, how much each of these lacks, from 0 (nothing) to C - 1; -1 = it does not count",
            "example",
            layouts=_PAIRED,
            column=True,
        ),
        "keys": Input("[B] random keys, another one for each example and step", "example"),
        "state": Input("the method's running statistics, scalars by name; return the new ones in LossOutput", "batch"),
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
      state: running statistics by name, with their values before the first step. Such a method is batch coupled.
      head: outputs of the linear head that the method trains on the policy's hidden states; 0 = none. A string names
        the option that says how many.
      paper: where the method is from.

    Raises:
      TypeError: when created, if the objective's signature breaks the contract: an unknown input, an input that the
        layout does not have, a head or state that is not there, an option without a default or of an unsupported type.
    """

    name: str
    objective: Callable[..., LossOutput]
    layout: Layout
    logps: Logps = Logps.SUM
    batch_coupled: bool = False
    state: Mapping[str, float] = field(default_factory=dict)
    head: int | str = 0
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
        known_inputs = [INPUTS[name] for name in self.inputs if name in INPUTS]
        if not any(known.trains for known in known_inputs):
            trains = ", ".join(name for name, known in INPUTS.items() if known.trains)
            problems.append(f"no input that a gradient flows from ({trains}), so there is nothing to train.")
        if any(known.head for known in known_inputs) != bool(self.head):
            problems.append("an input that a head computes goes together with head=, the number of its outputs.")
        if ("state" in self.inputs) != bool(self.state):
            problems.append("the input 'state' goes together with state=, its values before the first step.")
        if self.state and not self.batch_coupled:
            problems.append("a method with state is batch coupled.")
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
        hints = annotations(self.objective)
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
    def needs_live_reference(self) -> bool:
        """Whether the reference must be a model that the step runs."""
        return any(INPUTS[name].live for name in self.inputs)

    @property
    def mismatched(self) -> bool:
        """Whether another example's completion stands behind each prompt."""
        return "mismatched_policy" in self.inputs

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs that come with the data."""
        return tuple(name for name in self.inputs if INPUTS[name].column)

    def head_outputs(self, options: Mapping[str, Any]) -> int:
        """Outputs of the method's head under these (resolved) options; 0 = it has none."""
        return int(options[self.head]) if isinstance(self.head, str) else self.head

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


def annotations(objective: Callable) -> dict[str, Any]:
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
