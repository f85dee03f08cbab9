"""Combinators that change what one method sees: lengths, token weights, the divergence; or how much a pair counts.

Each takes a row and gives a row. ``TRANSFORMS`` holds them under the names they have in an expression, ``ld(dpo)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxalign.combinators import (
    Inputs,
    Options,
    Setting,
    counted,
    divided,
    expect_layout,
    on_tokens,
    reduced,
    transformed,
    valid,
)
from jaxalign.method import Layout, Logps, Method
from jaxalign.objectives.divergences import Divergence, divergence_link
from jaxalign.objectives.ranges import Fraction
from jaxalign.objectives.terms import fixed
from jaxalign.objectives.token_level import pair_weights
from jaxalign.objectives.token_terms import drawn_tokens, tail_weights, token_sums
from jaxalign.ranges import Range
from jaxalign.types import LossOutput, Pair

MARGIN_LOSSES = ("dpo", "dpo_norm", "ipo", "robust_dpo", "rso", "exo", "discopop", "r_dpo")
"""Rows whose loss is a function of the difference of two log-ratios, which is where another divergence may stand."""


def mean(method: Method) -> Method:
    """A method on sums, given means over tokens instead: ``mean(dpo)`` is `dpo_norm`.

    Raises:
      TypeError: it does not read sums, or it divides by lengths itself.
    """
    return _given(Logps.MEAN, method, "mean", "means", "sum of log p_t / |y|")


def summed(method: Method) -> Method:
    """A method on means over tokens, given sums instead: ``summed(ipo)`` is IPO as its paper prints it.

    Raises:
      TypeError: it does not read means, or it divides by lengths itself.
    """
    return _given(Logps.SUM, method, "summed", "sums", "sum of log p_t")


def smoothed(method: Method) -> Method:
    """A method on pairs whose preference labels are assumed to be flipped now and then.

    ``(1 - smoothing) * L(chosen, rejected) + smoothing * L(rejected, chosen)``: the expected loss if a share
    `smoothing` of the pairs is labelled the wrong way round. Of `dpo` it is its own ``label_smoothing`` (cDPO).

    Raises:
      TypeError: the method does not learn from pairs.
    """
    expect_layout(method, Layout.PAIRED, "there are two sides to swap only in a pair")

    def body(inputs: Inputs, options: Options) -> LossOutput:
        return _of_both_labels(method, inputs, options, options["smoothing"])

    share = Setting(
        Annotated[float, Range(ge=0.0, lt=0.5)], 0.1, "the share of preference labels assumed to be flipped."
    )
    return transformed(
        method,
        body,
        name=f"smoothed({method.name})",
        settings={"smoothing": share},
        summary=f"{method.name} with labels that may be wrong.",
        formula=f"loss = (1 - smoothing) * loss of {method.name} + smoothing * the same with the two sides swapped",
    )


def soft(method: Method) -> Method:
    """A method on pairs whose preference labels are probabilities, from a judge or the votes of several people.

    ``preference * L(chosen, rejected) + (1 - preference) * L(rejected, chosen)``: the expected loss over the label, so
    `smoothed` with a smoothing of each pair's own. ``soft(dpo)`` is `soft_dpo`. Rows with a preference below 0.5 are
    turned round when they are read, so that ``rewards/accuracies`` counts for the likelier completion.

    Raises:
      TypeError: the method does not learn from pairs, or reads that probability itself.
    """
    expect_layout(method, Layout.PAIRED, "there are two sides to prefer only in a pair")
    if "preference" in method.inputs:
        raise TypeError(f"{method.name} reads the probability of the preference itself.")

    def body(inputs: Inputs, options: Options) -> LossOutput:
        given = {name: value for name, value in inputs.items() if name != "preference"}
        return _of_both_labels(method, given, options, 1.0 - fixed(inputs["preference"]))

    return transformed(
        method,
        body,
        name=f"soft({method.name})",
        further=("preference",),
        summary=f"{method.name} with labels that are probabilities.",
        formula=f"p    = preference\nloss = p * loss of {method.name} + (1 - p) * the same with the two sides swapped",
    )


def _of_both_labels(method: Method, inputs: Inputs, options: Options, share: Any) -> LossOutput:
    """The expected loss if each pair's label is wrong with probability `share`; the metrics of the label as it is."""
    own = _own(method, options)
    swapped = {name: Pair(*value[::-1]) if isinstance(value, Pair) else value for name, value in inputs.items()}
    if inputs.get("preference") is not None:
        swapped |= {"preference": 1.0 - inputs["preference"]}
    output = method.loss(inputs, own)
    flipped = method.loss(swapped, own)
    losses = (1.0 - share) * counted(output, method, inputs) + share * counted(flipped, method, inputs)
    return replace(output, losses=losses, weights=valid(inputs, losses))


def ld(method: Method) -> Method:
    """A method on pairs to which the tail of the longer completion counts less: ``ld(dpo)`` is `ld_dpo`.

    A method on means divides by the number of all tokens.

    Raises:
      TypeError: it is not on pairs, or reads tokens itself.
    """
    expect_layout(method, Layout.PAIRED, "the tail is what the other completion has no room for")
    _expect_log_probabilities(method)

    def body(inputs: Inputs, options: Options) -> LossOutput:
        weights = tail_weights(inputs["token_mask"], options["ld_alpha"])
        return method.loss(inputs | reduced(method, inputs, weights), _own(method, options))

    return transformed(
        method,
        body,
        name=f"ld({method.name})",
        logps=Logps.TOKEN,
        further=("token_mask",),
        settings={"ld_alpha": Setting(Fraction, 0.5, "weight of the tokens beyond the shorter completion's length.")},
        summary=f"{method.name} to which tokens beyond the shorter completion's length count less.",
        formula="m    = min(|y_w|, |y_l|)\n"
        "lp   = sum over t <= m of log p_t + ld_alpha * sum over t > m of log p_t, lr alike\n"
        f"loss = loss of {method.name} with these",
    )


def sampled(method: Method) -> Method:
    """A method on pairs that sees as many tokens of both completions, drawn at random: ``sampled(dpo)`` is `sampo`.

    To the method a completion is as long as its draw: means and ``lengths`` are those of the drawn tokens.

    Raises:
      TypeError: it is not on pairs, reads tokens itself, or asks for the mean lengths of the batch.
    """
    expect_layout(method, Layout.PAIRED, "as many tokens are drawn as the shorter of two completions has")
    _expect_log_probabilities(method)
    _expect_no_mean_lengths(method)

    def body(inputs: Inputs, options: Options) -> LossOutput:
        drawn = drawn_tokens(inputs["token_mask"], inputs["keys"])
        counts = token_sums(drawn)
        return method.loss(inputs | {"lengths": counts} | reduced(method, inputs, drawn, counts), options)

    return transformed(
        method,
        body,
        name=f"sampled({method.name})",
        logps=Logps.TOKEN,
        further=("token_mask", "keys"),
        without=("lengths",),
        summary=f"{method.name} on as many tokens of both completions, drawn at random.",
        formula="m    = min(|y_w|, |y_l|)\n"
        "lp   = sum over m tokens, drawn without replacement, of log p_t; lr over the same tokens\n"
        f"loss = loss of {method.name} with these",
    )


def weighted(method: Method) -> Method:
    """A method whose log-probabilities count each token as the data say: ``weighted(dpo)`` is `weighted_dpo`.

    A method on means divides by the number of tokens, not by the sum of their weights.

    Raises:
      TypeError: it reads tokens itself.
    """
    _expect_log_probabilities(method)
    return transformed(
        method,
        lambda inputs, options: method.loss(inputs | reduced(method, inputs, inputs["token_weights"]), options),
        name=f"weighted({method.name})",
        logps=Logps.TOKEN,
        further=("token_mask", "token_weights"),
        summary=f"{method.name} with a weight for each token.",
        formula=f"lp   = sum of weight_t * log p_t, lr alike\nloss = loss of {method.name} with these",
    )


def on_policy(method: Method) -> Method:
    """A method on pairs in which a pair counts as much as the policy would write it: ``on_policy(dpo)`` is `wpo`.

    Raises:
      TypeError: it is not on pairs, or the loss of a pair depends on the others.
    """
    expect_layout(method, Layout.PAIRED, "it is pairs that are weighed")
    if method.batch_coupled:
        raise TypeError(f"{method.name} compares the pairs of a batch, which a weight of each pair does not fit.")
    if "policy" not in method.inputs:
        raise TypeError(f"{method.name} reads no log-probabilities.")
    seen = on_tokens(method)

    def body(inputs: Inputs, options: Options) -> LossOutput:
        output = seen.loss(inputs, _own(method, options))
        weights = pair_weights(inputs["policy"], inputs["token_collision"], inputs["token_mask"], options["clamp"])
        metrics = dict(output.metrics) | {"pair_weights": weights}
        return replace(output, losses=weights * output.losses, metrics=metrics)

    return transformed(
        seen,
        body,
        name=f"on_policy({method.name})",
        further=("token_collision", "token_mask"),
        settings={"clamp": Setting(bool, True, "whether no pair counts more than 1.")},
        summary=f"{method.name} in which a pair counts as much as the policy would write it.",
        formula="w(y) = exp(mean over t of (log p_t - log sum over v of p_v^2))\n"
        "W    = min(1, w(y_w) * w(y_l)), no gradient\n"
        f"loss = W * loss of {method.name}",
    )


_G = {
    "reverse_kl": "rho",
    "forward_kl": "1 - exp(-rho)",
    "js": "log 2 + log sigmoid(rho)",
    "alpha": "(1 - exp(-divergence_alpha * rho)) / divergence_alpha",
}


def with_divergence(divergence: Divergence, method: Method) -> Method:
    """A method on the difference of log-ratios, with another divergence from the reference: ``js(dpo)``, as `f_dpo`.

    The log-ratio ``rho`` of a whole completion becomes ``g(rho)``; a method on means divides that by the number of
    tokens, as TRL does. Arguments of exp are clipped at ``exponent_clip``, beyond which there is no gradient. That
    rewards are ``beta * g(rho)`` up to a constant of the prompt holds for any of these divergences; the constant
    cancels in a difference only, so `MARGIN_LOSSES` are all that it is derived for.

    Raises:
      TypeError: it is none of those.
    """
    name = "alpha_divergence" if divergence == "alpha" else divergence
    if method.name not in MARGIN_LOSSES:
        raise TypeError(
            f"{method.name} is not known to be a function of the difference of two log-ratios, for which alone another"
            f" divergence is derived; {name} takes one of {', '.join(MARGIN_LOSSES)}."
            " In an expression it comes first: ld(js(dpo)), not js(ld(dpo))."
        )
    means = method.logps is Logps.MEAN
    settings = {}
    if divergence in ("forward_kl", "alpha"):
        clip = Annotated[float, Range(gt=0.0, le=80.0)]
        settings["exponent_clip"] = Setting(clip, 40.0, "largest argument of exp.")
    if divergence == "alpha":
        between = Annotated[float, Range(gt=0.0, lt=1.0)]
        settings["divergence_alpha"] = Setting(between, 0.5, "where between the reverse (0) and the forward (1) KL.")

    def body(inputs: Inputs, options: Options) -> LossOutput:
        def in_form(sums: Any) -> Any:
            return divided(sums, inputs["lengths"]) if means else sums

        def linked(policy: Any, reference: Any) -> Any:
            alpha, clip = options.get("divergence_alpha", 0.5), options.get("exponent_clip", 40.0)
            return divergence_link(divergence, policy - fixed(reference), alpha, clip)

        policy, reference = inputs["policy"], inputs["reference"]
        links = Pair(*map(linked, policy, reference))
        given = {"policy": in_form(links), "reference": jax.tree.map(jnp.zeros_like, links)}
        output = method.loss(inputs | given, _own(method, options))
        # The metrics of the policy are those of its log-probabilities, not of the links.
        plain = method.loss(
            inputs | {"policy": in_form(policy), "reference": in_form(reference)}, _own(method, options)
        )
        kept = {key: value for key, value in plain.metrics.items() if key.startswith(("logps/", "policy/"))}
        return replace(output, metrics=dict(output.metrics) | kept)

    return transformed(
        method,
        body,
        name=f"{name}({method.name})",
        logps=Logps.SUM,
        further=("lengths",) if means else (),
        settings=settings,
        summary=f"{method.name} tied to the reference by the {_DIVERGENCES[divergence]}.",
        formula=f"rho  = lp - lr\ng    = {_G[divergence]}" + (" / |y|\n" if means else "\n") + f"loss = loss of"
        f" {method.name} with g in the place of " + ("the mean log-ratio" if means else "rho"),
    )


_DIVERGENCES = {
    "reverse_kl": "reverse KL divergence, as it is anyway",
    "forward_kl": "forward KL divergence",
    "js": "Jensen-Shannon divergence",
    "alpha": "alpha divergence",
}

TRANSFORMS: Mapping[str, Callable[[Method], Method]] = MappingProxyType(
    {
        "mean": mean,
        "summed": summed,
        "ld": ld,
        "sampled": sampled,
        "weighted": weighted,
        "smoothed": smoothed,
        "soft": soft,
        "on_policy": on_policy,
        "reverse_kl": partial(with_divergence, "reverse_kl"),
        "forward_kl": partial(with_divergence, "forward_kl"),
        "js": partial(with_divergence, "js"),
        "alpha_divergence": partial(with_divergence, "alpha"),
    }
)
"""What takes one method and gives one, by its name in an expression."""


def _given(form: Logps, method: Method, name: str, what: str, formula: str) -> Method:
    """The method with its log-probabilities in the other of the two forms, sums and means."""
    read = Logps.SUM if form is Logps.MEAN else Logps.MEAN
    _expect_log_probabilities(method)
    if method.logps is not read:
        raise TypeError(
            f"{method.name} reads log-probabilities as {method.logps.name.lower()}s, expected {read.name.lower()}s."
        )
    _expect_no_mean_lengths(method)
    return transformed(
        method,
        lambda inputs, options: method.loss(inputs, options),
        name=f"{name}({method.name})",
        logps=form,
        summary=f"{method.name} on {what} over tokens.",
        formula=f"lp   = {formula}, lr alike\nloss = loss of {method.name} with these",
    )


def _own(method: Method, options: Options) -> dict[str, Any]:
    return {name: options[name] for name in method.options}


def _expect_log_probabilities(method: Method) -> None:
    if "policy" not in method.inputs:
        raise TypeError(f"{method.name} reads no log-probabilities.")
    if method.logps is Logps.TOKEN:
        raise TypeError(f"{method.name} reads the log-probabilities of tokens as they are; it leaves nothing to sum.")


def _expect_no_mean_lengths(method: Method) -> None:
    if "mean_lengths" in method.inputs:
        raise TypeError(f"{method.name} divides by lengths itself, those of whole completions.")
