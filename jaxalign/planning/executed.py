"""Operations of a step: those that the model needs, and those that the devices do.

What is done and not needed: padding of rows, keys that the chunked attention computes and masks, products that the
backward pass makes again. Counted as in `jaxalign.planning.flops`.
"""

from __future__ import annotations

import math

from jaxalign.config import RunConfig
from jaxalign.methods import get_method
from jaxalign.models.attention_forms import DENSE_LENGTH
from jaxalign.models.chunked_attention import BLOCK
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import flops
from jaxalign.planning.memory import sizes
from jaxalign.planning.workload import Workload


def needed(
    config: RunConfig,
    work: Workload,
    decoder: DecoderConfig,
    other: DecoderConfig | None,
    examples: int,
    *,
    train: bool,
) -> float:
    """Operations that the model needs for so many examples: a forward pass, and in training a backward pass of two."""
    if not train:
        return examples * flops.forward(decoder, work.tokens, work.scored, work.attended)
    sizes = {"tokens": work.tokens, "scored": work.scored, "attended": work.attended}
    return examples * flops.step(config, decoder, other, **sizes)


def done(
    config: RunConfig,
    decoder: DecoderConfig,
    other: DecoderConfig | None,
    rows: int,
    row: int,
    scored: int,
    train: bool,
) -> float:
    """Operations that all devices do in a step together, with the attention in its XLA form.

    Args:
      config: the run.
      decoder: the policy's architecture.
      other: that of a reference which the step computes.
      rows: of a step.
      row: places of a row.
      scored: scored slots of a row.
      train: whether there is a backward pass.
    """
    products, attention, head = _forward(decoder, rows, row, scored)
    if not train:
        return products + attention + head
    again = config.model.remat == "full"
    coupled = get_method(config.method.name).batch_coupled and config.train.microbatches > 1
    backward = 2 if config.adapter.kind == "none" else 1
    # The chunked attention makes its scores again whatever remat says, and scoring its logits.
    total = products * (1 + backward + again) + attention * (1 + 2 + 1 + again) + head * (1 + backward + 1)
    total += (products + attention + head) * coupled
    return total + (sum(_forward(other, rows, row, scored)) if other is not None else 0.0)


def _forward(decoder: DecoderConfig, rows: int, row: int, scored: int) -> tuple[float, float, float]:
    """Products with weights, attention, head."""
    keys = rows * row * row * computed_share(row)
    return (
        2.0 * sizes(decoder).blocks * rows * row,
        4.0 * decoder.heads * decoder.head_dim * decoder.layers * keys,
        2.0 * decoder.width * decoder.vocab_size * rows * scored,
    )


def computed_share(row: int) -> float:
    """Share of all pairs of a query and a key that the automatic form of attention computes at most.

    That is where one segment fills the row; blocks that do not meet are skipped.
    """
    if row <= DENSE_LENGTH:
        return 1.0
    blocks = math.ceil(row / BLOCK)
    return (blocks + 1) / (2 * blocks)
