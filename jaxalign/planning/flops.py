"""Arithmetic of a stage: operations that its model needs, as the literature counts them.

A product of an ``[m, k]`` and a ``[k, n]`` matrix is ``2 m k n`` operations. The forward pass takes 2 for each weight
of the blocks and each unique token (a prompt counts once, however many completions stand behind it), ``4 H C`` a layer
for each key that a token looks at, and ``2 D V`` for each scored token, since only these meet the head. The backward
pass takes twice the forward pass. Under adapters the frozen weights of the blocks and the head need no gradient, so
their products take as much as in the forward pass; attention has no weights and takes twice as always; and the
low-rank factors count as weights that are trained. What is computed again (remat), padding, and the optimizer's
arithmetic are not counted. The utilisation that turns operations into hours (MFU), and the one that a run logs
(``perf/mfu``), are defined in the same way.
"""

from __future__ import annotations

import math

from jaxalign.config import RunConfig
from jaxalign.methods import get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning.memory import adapter_size, run_adapter, sizes
from jaxalign.planning.workload import Workload


def forward(decoder: DecoderConfig, tokens: float, scored: float, attended: float) -> float:
    """Operations of a forward pass.

    Args:
      decoder: the architecture.
      tokens: unique tokens.
      scored: tokens whose log-probability is taken.
      attended: keys that all tokens look at, together.
    """
    count = sizes(decoder)
    products = 2.0 * count.blocks * tokens
    attention = 4.0 * decoder.heads * decoder.head_dim * decoder.layers * attended
    return products + attention + 2.0 * decoder.width * decoder.vocab_size * scored


def step(
    decoder: DecoderConfig,
    reference: DecoderConfig | None,
    *,
    tokens: float,
    scored: float,
    attended: float,
    factors: float | None = None,
) -> float:
    """Operations of a training step: forward, backward, and the forward pass of a reference that the step computes.

    Args:
      decoder: the policy.
      reference: a reference that is computed in every step; None without one, or with a cached one. The factors of
        one that moves with adapters are not counted.
      tokens: as in `forward`, likewise the others.
      scored: see there.
      attended: see there.
      factors: parameters of low-rank adapters, where only these are trained (`trained_factors`); None = all weights.
    """
    against = 0.0 if reference is None else forward(reference, tokens, scored, attended)
    own = 3 * forward(decoder, tokens, scored, attended)
    if factors is not None:  # no gradients of the weights of blocks and head
        own += 3 * 2.0 * factors * tokens - forward(decoder, tokens, scored, 0)
    return own + against


def trained_factors(config: RunConfig, decoder: DecoderConfig) -> float | None:
    """Parameters of a run's low-rank adapters; None where it trains all weights."""
    adapter = run_adapter(config)
    return None if adapter is None else adapter_size(decoder, adapter)


def training_steps(config: RunConfig, work: Workload) -> int:
    """Optimizer steps of a run."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 1.0) * work.examples / config.train.batch_size))


def training(
    config: RunConfig, work: Workload, decoder: DecoderConfig, reference: DecoderConfig | None
) -> tuple[float, float]:
    """Operations of a run.

    Args:
      config: the run.
      work: what it reads.
      decoder: the policy.
      reference: a reference that is computed in every step; None without one, or with a cached one.

    Returns:
      those of training, and those of its evaluations.
    """
    steps, factors = training_steps(config, work), trained_factors(config, decoder)
    once = forward(decoder, work.tokens, work.scored, work.attended) + 2.0 * (factors or 0.0) * work.tokens
    against = forward(reference, work.tokens, work.scored, work.attended) if reference is not None else 0.0
    method = get_method(config.method.name)
    again = method.batch_coupled and config.train.microbatches > 1  # such a method reads its parts twice
    read = {"tokens": work.tokens, "scored": work.scored, "attended": work.attended}
    each = step(decoder, reference, **read, factors=factors)
    evaluations = math.ceil(steps / config.train.eval_every) if config.train.eval_every else 1
    return (
        steps * config.train.batch_size * (each + again * once),
        work.held_out * evaluations * (once + against),
    )


def filling(config: RunConfig, work: Workload, reference: DecoderConfig) -> float:
    """Operations of a fill of the reference cache: every completion of the run once."""
    method = get_method(config.method.name)
    epochs = 1
    if method.mismatched:  # the completions of others change with the epoch
        epochs = math.ceil(training_steps(config, work) * config.train.batch_size / work.examples)
    examples = work.examples * epochs + work.held_out
    return examples * forward(reference, work.tokens, work.scored, work.attended)
