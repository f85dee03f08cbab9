"""Completions of prompts: one prefill, then cached decoding in a loop on the device.

Prompts are grouped by length, each group padded to a power of two and to `batch_size` rows, so that few programs are
compiled. A prompt's result depends on its tokens, the settings and its seed, and neither on its neighbours nor on
`batch_size` (but for float rounding).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import ConfigError
from jaxalign.models.policy import Policy
from jaxalign.sampling.filters import top_k_filter, top_p_filter
from jaxalign.types import Variables

SHORTEST_BUCKET = 16


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
      tokens: the tokens drawn, with the stop token that ended them, if one did.
      logps: log-probability of each under the model itself, in nats: temperature 1, nothing filtered.
      stopped: True if a stop token ended it, False if `max_new_tokens` did.
    """

    tokens: list[int]
    logps: list[float]
    stopped: bool


def generate(
    policy: Policy,
    variables: Variables,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
) -> list[list[int]]:
    """The tokens that follow each prompt, the stop token included; see `sample`."""
    completions = sample(
        policy,
        variables,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop_tokens=stop_tokens,
        seed=seed,
        batch_size=batch_size,
    )
    return [completion.tokens for completion in completions]


def sample(
    policy: Policy,
    variables: Variables,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
) -> list[Completion]:
    """One completion of each prompt, in the order of the prompts.

    Args:
      policy: the model.
      variables: its weights.
      prompts: token ids, each at least one token.
      max_new_tokens: most tokens of a completion.
      temperature: the logits are divided by it; 0 takes the most probable token.
      top_p: draw from the fewest tokens whose probabilities sum to at least this; 1 = all. After `top_k`.
      top_k: draw from the k most probable tokens; 0 = all.
      stop_tokens: ids that end a completion; they are part of it.
      seed: of the draws. With one number each prompt's draws also depend on its place in `prompts`; with one number
        a prompt, on that alone.
      batch_size: rows that are decoded together; on a mesh, a multiple of the devices that the batch is split over.

    Raises:
      ConfigError: settings out of range, prompts that are empty, hold ids outside of the vocabulary, or are too long
        for the model together with `max_new_tokens`; all at once.
    """
    _check(policy, prompts, max_new_tokens, temperature, top_p, top_k, stop_tokens, seed, batch_size)
    results: list[Completion | None] = [None] * len(prompts)
    for members, width in _batches(prompts, batch_size, policy.config.max_positions):
        tokens = np.zeros((batch_size, width), np.int32)
        lengths = np.ones(batch_size, np.int32)
        seeds = np.zeros((batch_size, 2), np.uint32)
        for row, index in enumerate(members):
            prompt = prompts[index]
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
            seeds[row] = (seed, index) if isinstance(seed, int) else (seed[index], 0)
        drawn = _run(
            variables,
            tokens,
            lengths,
            np.arange(batch_size) < len(members),
            seeds,
            np.float32(temperature or 1.0),
            np.float32(top_p),
            np.asarray(stop_tokens, np.int32),
            policy=policy,
            max_new_tokens=max_new_tokens,
            greedy=temperature == 0,
            top_k=top_k,
            nucleus=top_p < 1,
        )
        drawn = jax.device_get(drawn)
        for row, index in enumerate(members):
            count = int(drawn.counts[row])
            results[index] = Completion(
                tokens=drawn.tokens[row, :count].tolist(),
                logps=drawn.logps[row, :count].tolist(),
                stopped=bool(drawn.stopped[row]),
            )
    return [result for result in results if result is not None]


class _Drawn(NamedTuple):
    """State of the loop: what is drawn so far. A row counts until it is stopped."""

    tokens: Int[Array, "N M"]
    logps: Float[Array, "N M"]
    counts: Int[Array, " N"]
    stopped: Bool[Array, " N"]


@partial(jax.jit, static_argnames=("policy", "max_new_tokens", "greedy", "top_k", "nucleus"))
def _run(
    variables: Variables,
    tokens: Int[Array, "N P"],
    lengths: Int[Array, " N"],
    present: Bool[Array, " N"],
    seeds: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    stop_tokens: Int[Array, " Q"],
    *,
    policy: Policy,
    max_new_tokens: int,
    greedy: bool,
    top_k: int,
    nucleus: bool,
) -> _Drawn:
    rows = tokens.shape[0]
    keys = jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(seeds)

    def choose(logits: Array, step: Array) -> Array:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = top_k_filter(logits / temperature, top_k)
        if nucleus:
            logits = top_p_filter(logits, top_p)
        at_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(at_step, logits).astype(jnp.int32)

    def record(drawn: _Drawn, logits: Array, step: Array) -> tuple[_Drawn, Array]:
        token = choose(logits, step)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=-1)[:, 0]
        live = ~drawn.stopped
        ends = jnp.any(token[:, None] == stop_tokens, axis=-1)
        drawn = _Drawn(
            tokens=drawn.tokens.at[:, step].set(jnp.where(live, token, 0)),
            logps=drawn.logps.at[:, step].set(jnp.where(live, logp, 0.0)),
            counts=drawn.counts + live,
            stopped=drawn.stopped | ends,
        )
        return drawn, token

    def going(state: tuple) -> Array:
        drawn, _, _, step = state
        return (step < max_new_tokens) & ~jnp.all(drawn.stopped)

    def advance(state: tuple) -> tuple:
        drawn, token, cache, step = state
        # Stopped rows go on at their place, unread, until the whole batch has stopped.
        logits, cache = policy.decode(variables, cache, token, lengths + step - 1)
        drawn, token = record(drawn, logits, step)
        return drawn, token, cache, step + 1

    logits, cache = policy.prefill(variables, tokens, lengths, tokens.shape[1] + max_new_tokens)
    drawn = _Drawn(
        tokens=jnp.zeros((rows, max_new_tokens), jnp.int32),
        logps=jnp.zeros((rows, max_new_tokens), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        stopped=~present,
    )
    drawn, token = record(drawn, logits, jnp.int32(0))
    return jax.lax.while_loop(going, advance, (drawn, token, cache, jnp.int32(1)))[0]


def _batches(prompts: Sequence[Sequence[int]], batch_size: int, longest: int) -> Iterator[tuple[list[int], int]]:
    """Indices of prompts that are decoded together, with the width they are padded to."""
    buckets: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        width = max(SHORTEST_BUCKET, 1 << (len(prompt) - 1).bit_length())
        buckets.setdefault(min(width, longest), []).append(index)
    for width in sorted(buckets):
        members = buckets[width]
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size], width


def _check(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stop_tokens: Sequence[int],
    seed: int | Sequence[int],
    batch_size: int,
) -> None:
    problems = []
    vocabulary, longest = policy.config.vocab_size, policy.config.max_positions
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("top_k", top_k, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{name} is {value!r}, expected an integer >= {least}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        problems.append(f"temperature is {temperature!r}, expected a finite number >= 0 (0 = most probable token).")
    if not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p!r}, expected a number in (0, 1].")
    if not isinstance(seed, int) and len(seed) != len(prompts):
        problems.append(f"seed has {len(seed)} entries, expected one number or one for each of {len(prompts)} prompts.")
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if any(not 0 <= one < 2**32 for one in seeds):
        problems.append("seed is out of range, expected integers in [0, 2**32).")
    outside = sorted({token for token in stop_tokens if not 0 <= token < vocabulary})
    if outside:
        problems.append(f"stop tokens {outside} are outside of the vocabulary of {vocabulary} tokens.")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            problems.append(f"prompt {index} is empty, expected at least one token (the BOS token, say).")
            continue
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            problems.append(
                f"prompt {index} holds token ids in [{min(prompt)}, {max(prompt)}], outside of the vocabulary of "
                f"{vocabulary} tokens. Is this the model's tokenizer?"
            )
        if isinstance(max_new_tokens, int) and len(prompt) + max_new_tokens > longest:
            problems.append(
                f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}: together more than "
                f"the model's {longest} positions. Shorten the prompt or lower max_new_tokens."
            )
    if problems:
        raise ConfigError(problems if len(problems) <= 20 else [*problems[:20], f"and {len(problems) - 20} more."])
