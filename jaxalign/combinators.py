"""Methods made of methods: a weighted sum of losses, and what `jaxalign.transforms` has.

Each takes rows and gives a row, whose inputs and options are read from a signature as those of any other. In a
configuration the same is written as an expression, ``0.8*dpo + 0.2*bco_pair + nll``: see `jaxalign.combinations`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.docstrings import read_docstring
from jaxalign.method import INPUTS, Layout, Logps, Method, annotations
from jaxalign.objectives.ranges import NonNegative
from jaxalign.objectives.terms import fixed
from jaxalign.objectives.token_terms import token_counts, token_sums
from jaxalign.types import LossOutput, Pair

Inputs = dict[str, Any]
Options = Mapping[str, Any]
Body = Callable[[Inputs, Options], LossOutput]
"""A loss of inputs and options, both by name."""


class Setting(NamedTuple):
    """An option on its way into another signature."""

    hint: Any
    default: Any
    text: str


def weighted_sum(terms: Mapping[str, tuple[float, Method]]) -> Method:
    """The sum of methods' losses, each times its weight.

    The terms see the same batch, so they must have one layout. Where they see log-probabilities in different forms,
    the sum asks for those of tokens and gives each its own form. The mean over the batch is the weighted sum of the
    terms' own means. Metrics are those of the terms, of the first one where names clash, and ``loss/NAME`` of each.

    Args:
      terms: weight and method by a name of one's own choice. It marks the term's options, ``NAME_OPTION``, its
        weight, which is an option too, ``NAME_weight``, and its state. A single term's options keep their names.

    Raises:
      TypeError: there are no terms, their layouts differ, they are of single completions, or two have a head.
    """
    methods = {name: method for name, (_, method) in terms.items()}
    layout = _shared_layout(list(methods.values()))
    prefix = {name: f"{name}_" if len(terms) > 1 else "" for name in terms}
    heads = {name: method.head for name, method in methods.items() if method.head}
    if len(heads) > 1:
        raise TypeError(f"{_listed(methods[name].name for name in heads)} have a head each; a method can have one.")
    forms = {method.logps for method in methods.values() if "policy" in method.inputs}
    form = Logps.SUM if not forms else forms.pop() if len(forms) == 1 else Logps.TOKEN
    seen = {
        name: method if method.logps is form or "policy" not in method.inputs else on_tokens(method)
        for name, method in methods.items()
    }
    settings: dict[str, Setting] = {}
    for name, (weight, method) in terms.items():
        own = {"weight": Setting(NonNegative, float(weight), f"how much the loss of {method.name} counts.")}
        settings |= {prefix[name] + option: setting for option, setting in merged(own, settings_of(method)).items()}

    def body(inputs: Inputs, options: Options) -> LossOutput:
        total: Any = 0.0
        metrics, states = {}, {}
        for name, method in seen.items():
            own = {option: options[prefix[name] + option] for option in method.options}
            state = {key: inputs["state"][prefix[name] + key] for key in method.state}
            output = method.loss(inputs | {"state": state}, own)
            losses = counted(output, method, inputs)
            total = total + options[f"{prefix[name]}weight"] * losses
            metrics = dict(output.metrics) | metrics | {f"loss/{name}": fixed(losses)}
            states |= {prefix[name] + key: value for key, value in (output.state or {}).items()}
        return LossOutput(total, valid(inputs, total), metrics, states or None)

    return build(
        body,
        name=" + ".join(
            method.name if weight == 1 else f"{weight:g}*{method.name}" for weight, method in terms.values()
        ),
        layout=layout,
        logps=form,
        batch_coupled=any(method.batch_coupled for method in methods.values()),
        state={prefix[name] + key: value for name, method in methods.items() for key, value in method.state.items()},
        head=next((prefix[name] + head if isinstance(head, str) else head for name, head in heads.items()), 0),
        inputs=union(inputs_of(method) for method in seen.values()),
        settings=settings,
        summary=f"The weighted sum of {_listed(method.name for method in methods.values())}.",
        formula="loss = " + "\n     + ".join(f"{prefix[name]}weight * loss of {m.name}" for name, m in methods.items()),
        meaning=[f"{method.name}: {method.summary}" for method in methods.values()],
    )


def on_tokens(method: Method) -> Method:
    """The same method, with the log-probabilities of tokens as its inputs.

    Raises:
      TypeError: it asks for log-probabilities of mismatched completions, of which there are sums only.
    """
    if method.logps is Logps.TOKEN:
        return method
    return transformed(
        method,
        lambda inputs, options: method.loss(inputs | reduced(method, inputs), options),
        name=method.name,
        logps=Logps.TOKEN,
        further=("token_mask",),
        summary=method.summary,
        formula=f"loss = loss of {method.name}",
    )


def named(method: Method, name: str, *, doc: str, paper: str, **defaults: Any) -> Method:
    """A method under a name of its own, with its own docstring and defaults.

    Args:
      method: what it is.
      name: its name.
      doc: its docstring, with a section ``Returns``, before which the arguments are listed.
      paper: where it is from.
      **defaults: of its options.

    Raises:
      TypeError: there is no such option.
    """
    settings = settings_of(method)
    unknown = defaults.keys() - settings.keys()
    if unknown:
        raise TypeError(f"{method.name} has no option {_listed(sorted(unknown))}; it has {_listed(settings)}.")
    settings = {option: s._replace(default=defaults.get(option, s.default)) for option, s in settings.items()}
    made = transformed(method, method.loss, name=name, replaced=settings, summary=method.summary, formula="")
    before, returns, after = inspect.cleandoc(doc).partition("Returns:\n")
    args = _arguments(inputs_of(method), settings)
    made.objective.__doc__ = f"{before}{args}\n\n{returns}{after}"
    return replace(made, paper=paper)


# What combinators are made of.


def inputs_of(method: Method) -> dict[str, Any]:
    """Names of the inputs with their defaults; the signature's "empty" where there is none."""
    parameters = inspect.signature(method.objective).parameters
    return {name: parameters[name].default for name in method.inputs}


def settings_of(method: Method) -> dict[str, Setting]:
    """The options by name."""
    hints, texts = annotations(method.objective), read_docstring(method.objective).items("Args")
    return {
        name: Setting(hints.get(name, option.type), option.default, texts.get(name, ""))
        for name, option in method.options.items()
    }


def merged(own: Mapping[str, Setting], others: Mapping[str, Setting]) -> dict[str, Setting]:
    """Both, which must not share a name.

    Raises:
      TypeError: they do.
    """
    shared = own.keys() & others.keys()
    if shared:
        raise TypeError(f"the option {_listed(sorted(shared))} is there twice.")
    return {**others, **own}


def union(groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All inputs; one has a default if it has one in every group that asks for it."""
    found: dict[str, Any] = {}
    for group in groups:
        for name, default in group.items():
            found[name] = inspect.Parameter.empty if found.get(name, default) is inspect.Parameter.empty else default
    return found


def valid(inputs: Inputs, losses: Float[Array, " B"]) -> Float[Array, " B"]:
    """1 for each example, 0 where `inputs` say that there is none, ``[B]``."""
    mask = inputs.get("example_mask")
    return jnp.ones_like(losses) if mask is None else jnp.asarray(mask).astype(losses.dtype)


def counted(output: LossOutput, method: Method, inputs: Inputs) -> Float[Array, " B"]:
    """Losses whose plain mean over the valid examples is the method's own weighted mean, ``[B]``.

    That takes the whole batch, which a batch-coupled method alone sees (beta-DPO drops pairs of it). Else an example
    that weighs nothing adds nothing (a ranking without an order).
    """
    mask = valid(inputs, output.losses) if method.batch_coupled else jnp.ones_like(output.losses)
    weights = fixed(output.weights) * mask
    losses = jnp.where(weights > 0, output.losses, 0.0) * weights
    if not method.batch_coupled:
        return losses
    total = weights.sum()
    return losses * jnp.where(total > 0, mask.sum() / jnp.where(total > 0, total, 1.0), 0.0)


def reduced(method: Method, inputs: Inputs, weights: Any = None, counts: Any = None) -> Inputs:
    """``policy`` and ``reference`` in the form that the method reads, from those of tokens.

    Args:
      method: it reads sums or means.
      inputs: with the log-probabilities of tokens and ``token_mask``.
      weights: of the tokens, shaped like them; None = 1 each.
      counts: what means are divided by; None = the number of tokens.
    """
    counts = token_counts(inputs["token_mask"]) if counts is None else counts
    found = {}
    for name in ("policy", "reference"):
        if name in method.inputs:
            sums = token_sums(inputs[name], weights)
            found[name] = divided(sums, counts) if method.logps is Logps.MEAN else sums
    return found


def divided(sums: Any, counts: Any) -> Any:
    """Sums by counts, on both sides of a pair; 0 where the count is."""
    if isinstance(sums, Pair):
        return Pair(*(divided(total, count) for total, count in zip(sums, counts, strict=True)))
    return sums / jnp.maximum(fixed(counts), 1.0)


def expect_layout(method: Method, layout: Layout, why: str) -> None:
    """Raises a TypeError with the reason where the method has another layout."""
    if method.layout is not layout:
        raise TypeError(
            f"{method.name} reads {method.layout.name.lower()} data, expected {layout.name.lower()}: {why}."
        )


def transformed(
    method: Method,
    body: Body,
    *,
    name: str,
    summary: str,
    formula: str,
    logps: Logps | None = None,
    further: Sequence[str] = (),
    without: Sequence[str] = (),
    settings: Mapping[str, Setting] = {},
    replaced: Mapping[str, Setting] | None = None,
) -> Method:
    """A method around another one: its inputs and `further` ones `without` some, its options and `settings`.

    `replaced` are settings in the place of all of its options.

    Raises:
      TypeError: tokens are asked for where there are only sums, or an option is there twice.
    """
    if logps is Logps.TOKEN and any(one.startswith("mismatched") for one in method.inputs):
        raise TypeError(f"{method.name} compares with mismatched completions, of which there are no tokens.")
    asked = union([inputs_of(method), dict.fromkeys(further, inspect.Parameter.empty)])
    return build(
        body,
        name=name,
        layout=method.layout,
        logps=method.logps if logps is None else logps,
        batch_coupled=method.batch_coupled,
        state=method.state,
        head=method.head,
        inputs={one: default for one, default in asked.items() if one not in without},
        settings=merged(settings, settings_of(method)) if replaced is None else replaced,
        summary=summary,
        formula=formula,
        meaning=[f"{method.name}: {method.summary}"],
    )


def build(
    body: Body,
    *,
    name: str,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Setting],
    summary: str,
    formula: str,
    meaning: Sequence[str],
    **row: Any,
) -> Method:
    """A row whose objective has these inputs and options in its signature, annotations and docstring.

    Args:
      body: computes it.
      name: of the row.
      inputs: names with their defaults.
      settings: options by name.
      summary: first line of the docstring.
      formula: what stands under it.
      meaning: paragraphs behind it.
      **row: further attributes of the `Method`.
    """
    empty, kind = inspect.Parameter.empty, inspect.Parameter
    required = sorted(inputs, key=lambda one: inputs[one] is not empty)
    signature = inspect.Signature(
        [
            *(kind(one, kind.POSITIONAL_OR_KEYWORD, default=inputs[one]) for one in required),
            *(kind(one, kind.KEYWORD_ONLY, default=s.default, annotation=s.hint) for one, s in settings.items()),
        ],
        return_annotation=LossOutput,
    )

    def objective(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        values = given.arguments
        return body({one: values[one] for one in inputs}, {one: values[one] for one in settings})

    paragraphs = "\n\n".join(textwrap.fill(text, 110) for text in meaning)
    formula = textwrap.indent(formula, "  ")
    returns = "Returns:\n  Losses, ``[B]``, weights and metrics as `LossOutput` says."
    objective.__name__ = objective.__qualname__ = re.sub(r"\W+", "_", name).strip("_")
    objective.__doc__ = f"{summary}\n\n::\n\n{formula}\n\n{paragraphs}\n\n{_arguments(inputs, settings)}\n\n{returns}\n"
    objective.__annotations__ = {one: setting.hint for one, setting in settings.items()} | {"return": LossOutput}
    objective.__signature__ = signature
    return Method(name, objective, **row)


def _arguments(inputs: Iterable[str], settings: Mapping[str, Setting]) -> str:
    texts = {name: f"{INPUTS[name].meaning}." for name in inputs} | {name: s.text for name, s in settings.items()}
    wrapped = (
        textwrap.fill(f"{name}: {text}", 110, initial_indent="  ", subsequent_indent="    ")
        for name, text in texts.items()
    )
    return "\n".join(["Args:", *wrapped])


def _shared_layout(methods: Sequence[Method]) -> Layout:
    if not methods:
        raise TypeError("a sum needs a term.")
    first = methods[0]
    for other in methods[1:]:
        single = next((one for one in (first, other) if one.layout is Layout.SINGLE), None)
        instead = "" if single is None else f" On pairs, nll takes the place of {single.name}."
        if other.layout is not first.layout:
            raise TypeError(
                f"{first.name} reads {first.layout.name.lower()} data and {other.name} {other.layout.name.lower()} "
                f"data, but the terms of a sum see the same examples.{instead}"
            )
        if single is not None:
            raise TypeError(
                f"{first.name} and {other.name} weigh their examples by tokens, and a sum has no such weight.{instead}"
            )
    return first.layout


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
