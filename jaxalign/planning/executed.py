"""Operations of a step: those that the model needs, and those that the devices do.

What is done and not needed: padding of rows, keys that attention computes and masks, products that the backward pass
makes again. Counted as in `jaxalign.planning.flops`.
"""

from __future__ import annotations

import math

from jaxalign.config import RunConfig
from jaxalign.methods import get_method
from jaxalign.models.attention_forms import form_name
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import flops
from jaxalign.planning.memory import sizes
from jaxalign.planning.workload import Workload

BACKWARD = {"dense": 2.0, "chunked": 2.5, "kernel": 3.5}
"""Operations of the backward pass of attention over those of the forward pass, which has two products: four of its own,
and the scores made again once, or by a kernel for the queries' gradient and one for the keys' each, with one more."""
BLOCK = 256
"""Tokens of a block: what a computed pair of blocks wastes at the diagonal. The kernel's are 128 to 512."""


def needed(
    config: RunConfig,
    work: Workload,
    decoder: DecoderConfig,
    other: DecoderConfig | None,
    examples: int,
    *,
    train: bool,
) -> float:
    """Operations that the model needs for so many examples: of a forward pass, or of training."""
    if not train:
        return examples * flops.forward(decoder, work.tokens, work.scored, work.attended)
    sizes = {"tokens": work.tokens, "scored": work.scored, "attended": work.attended}
    return examples * flops.step(decoder, other, **sizes, factors=flops.trained_factors(config, decoder))


def done(
    config: RunConfig,
    decoder: DecoderConfig,
    other: DecoderConfig | None,
    rows: int,
    row: int,
    scored: int,
    train: bool,
    platform: str,
) -> float:
    """Operations that all devices do in a step together.

    Args:
      config: the run.
      decoder: the policy's architecture.
      other: that of a reference which the step computes.
      rows: of a step.
      row: places of a row.
      scored: scored slots of a row.
      train: whether there is a backward pass.
      platform: "tpu" or "gpu": what the automatic attention goes by.
    """
    form = form_name(config.model.attention, row, platform)
    products, attention, head = _forward(decoder, rows, row, scored, form)
    if not train:
        return products + attention + head
    again = config.model.remat == "full"
    coupled = get_method(config.method.name).batch_coupled and config.train.microbatches > 1
    factors = flops.trained_factors(config, decoder)
    backward = 2 if factors is None else 1  # of weights; attention has none
    low_rank = 2.0 * (factors or 0.0) * rows * row
    # Only "dots" keeps what attention gave, and of the dense form nobody does.
    attention_again = config.model.remat == "full" or (config.model.remat == "dots" and form == "dense")
    # Scoring makes its logits again whatever remat says.
    total = products * (1 + backward + again) + head * (1 + backward + 1)
    total += attention * (1 + BACKWARD[form] + attention_again)
    total += low_rank * (3 + again) + (products + attention + head + low_rank) * coupled
    return total + (sum(_forward(other, rows, row, scored, form)) if other is not None else 0.0)


def _forward(decoder: DecoderConfig, rows: int, row: int, scored: int, form: str) -> tuple[float, float, float]:
    """Products with weights, attention, head."""
    keys = rows * row * row * computed_share(row, form)
    return (
        2.0 * sizes(decoder).blocks * rows * row,
        4.0 * decoder.heads * decoder.head_dim * decoder.layers * keys,
        2.0 * decoder.width * decoder.vocab_size * rows * scored,
    )


def computed_share(row: int, form: str) -> float:
    """Share of all pairs of a query and a key that a form of attention computes at most.

    That is where one segment fills the row; blocks that do not meet are skipped.
    """
    if form == "dense":
        return 1.0
    blocks = math.ceil(row / BLOCK)
    return (blocks + 1) / (2 * blocks)
