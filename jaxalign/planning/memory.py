"""Memory of a training step on each device, from shapes alone.

What is counted, per device, with full sharding over ``fsdp`` and ``tensor``:

=============  =================================================================================================
weights        ``model.param_dtype``, split over fsdp x tensor
optimizer      its float32 moments (adamw 2, lion, rmsprop and sgd 1, adafactor about none), split likewise
gradients      as the weights; twice with micro-batches, which add to a sum
reference      a live or moving copy of the weights, split likewise; nothing for a cached one
gathered       what fsdp gathers for use, in ``model.dtype``: two layers, the embedding, the head; and the whole float32
               gradients of embedding and head before they are scattered
activations    what the backward pass keeps of every layer: with remat ``full`` the block's input, with ``dots`` the
               products' results, with ``none`` everything; and one block's own
scoring        states of the scored tokens, and three float32 arrays of a tile's logits
=============  =================================================================================================

Measured against `jax.stages.Compiled.memory_analysis` (arguments plus temporaries) of the same step:

* compiled ahead of time for v5e:8x8 (libtpu 0.0.52), Mistral-7B, remat ``full``: one row of 2048 tokens on each chip
  with a live reference 3.62 GiB, estimated 4.02 (11 % too much); four rows with a cached one 5.93 GiB, estimated 6.88
  (16 % too much);
* on eight simulated CPU devices, 4 and 25 million parameters, float32, every remat, one and four micro-batches, rows of
  512 to 2048 tokens: from 10 % too little to 17 % too much.

Other compilers share memory between arrays in other ways; GPUs were not measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

import jax

from jaxalign.config import RunConfig
from jaxalign.logprobs import tile_shape
from jaxalign.models.attention import LOOP_BANDS, LOOPED_LENGTH, MOST_BLOCKS, SMALLEST_BLOCK
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy

BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "rmsprop": 1, "sgd": 1, "adafactor": 0}


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model, in numbers.

    Attributes:
      total: all of them.
      embedding: the table.
      head: the output matrix; 0 where it is the table.
    """

    total: int
    embedding: int
    head: int

    @property
    def blocks(self) -> int:
        """Those of the blocks, with the norms."""
        return self.total - self.embedding - self.head


@functools.lru_cache(maxsize=64)
def sizes(decoder: DecoderConfig) -> Sizes:
    """Counts the parameters of an architecture. Makes none."""
    params = build_policy(decoder).abstract()["params"]
    table = decoder.vocab_size * decoder.width
    return Sizes(
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)), table, 0 if decoder.tied_embeddings else table
    )


@dataclass(frozen=True)
class Parts:
    """Bytes on a device, see the module's text."""

    weights: float
    optimizer: float
    gradients: float
    reference: float
    gathered: float
    activations: float
    scoring: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(dataclasses.astuple(self))


def step_rows(config: RunConfig, tokens: float, row: int, split: int, fill: float) -> int:
    """Rows of a step: its examples packed, rounded up to a multiple of the devices that share them and micro-batches.

    Args:
      config: the run.
      tokens: in an example.
      row: tokens of a row.
      split: devices that share the rows.
      fill: share of a row's places that are used, at best.
    """
    needed = math.ceil(config.train.batch_size / max(1.0, fill * row / tokens))
    multiple = split * config.train.microbatches
    return max(1, -(-needed // multiple)) * multiple


def step_memory(
    config: RunConfig,
    decoder: DecoderConfig,
    *,
    rows: int,
    row: int,
    scored: float,
    mesh: tuple[int, int, int],
    reference: DecoderConfig | None,
    train: bool = True,
) -> Parts:
    """Bytes that a step needs on each device.

    Args:
      config: the run: precision, remat, micro-batches, optimizer.
      decoder: the policy's architecture.
      rows: rows of a step, over all devices.
      row: tokens of a row.
      scored: scored tokens of a row.
      mesh: devices along ``data``, ``fsdp`` and ``tensor``.
      reference: the architecture of a reference in memory; None without one.
      train: False for a pass that only scores: no optimizer, no gradients, nothing kept for a backward pass.
    """
    data, fsdp, tensor = mesh
    shards = fsdp * tensor
    stored, computed = BYTES[config.model.param_dtype], BYTES[config.model.dtype]
    count = sizes(decoder)
    own = count.total * stored / shards
    local = math.ceil(rows / (data * fsdp)) / config.train.microbatches
    tokens = local * row
    largest = max(sizes(d).blocks / d.layers for d in (decoder, *([reference] if reference else ())))
    table = count.embedding / tensor
    gathered = max(2 * largest / tensor * computed, table * (computed + 4 * train)) if shards > 1 else table * computed
    kept, working = _per_token(decoder, config.model.remat if train else "forward", tensor, row)
    tile = tile_shape(local * scored, math.ceil(decoder.vocab_size / tensor), "tpu")
    logits = 3 * tile.tokens * tile.entries * 4
    states = local * scored * decoder.width * computed
    if not train:
        return Parts(own, 0, 0, 0, gathered, tokens * (kept + working) * computed, logits + states)
    return Parts(
        weights=own,
        optimizer=MOMENTS[config.optimizer.name] * count.total * 4 / shards,
        gradients=own * (2 if config.train.microbatches > 1 else 1),
        reference=0 if reference is None else sizes(reference).total * _reference_bytes(config) / shards,
        gathered=gathered,
        activations=tokens * (decoder.layers * kept + working) * computed,
        scoring=logits + 2 * states,
    )


def _reference_bytes(config: RunConfig) -> int:
    moving = config.reference.mode == "moving" and config.reference.dtype
    return BYTES[config.reference.dtype if moving and config.reference.dtype else config.model.param_dtype]


def _per_token(decoder: DecoderConfig, remat: str, tensor: int, row: int) -> tuple[float, float]:
    """Numbers that are kept of each layer, and those of the one block that is at work, for each token."""
    width, mlp = decoder.width, decoder.mlp_width / tensor
    query = decoder.heads * decoder.head_dim / tensor
    value = decoder.kv_heads * decoder.head_dim / tensor
    products = query + 2 * value + width + 2 * mlp + width
    # Each block of queries keeps the keys and values up to its own end.
    bands = LOOP_BANDS if row > LOOPED_LENGTH else min(MOST_BLOCKS, math.ceil(row / SMALLEST_BLOCK))
    everything = products + 6 * width + 5 * query + 2 * mlp + (bands + 1) * query
    unfused = 2 * width + 3 * query + 2 * mlp  # casts, masks and products that are kept where nothing is made again
    kept = {"none": everything + unfused, "dots": width + products, "full": width, "forward": width}[remat]
    return kept, everything if remat in ("full", "dots") else products


CHANGES: tuple[tuple[str, dict[str, dict[str, object]]], ...] = (
    ("reference.mode=cached", {"reference": {"mode": "cached"}}),
    ("model.remat=full", {"model": {"remat": "full"}}),
    ("train.microbatches=2", {"train": {"microbatches": 2}}),
    ("train.microbatches=4", {"train": {"microbatches": 4}}),
    ("train.microbatches=8", {"train": {"microbatches": 8}}),
    ("train.microbatches=16", {"train": {"microbatches": 16}}),
    ("model.param_dtype=bfloat16", {"model": {"param_dtype": "bfloat16"}}),
)
"""What may make a run fit, the change that costs least first."""


def nearest_changes(config: RunConfig, fits) -> list[str] | None:
    """The fewest changes with which a run fits; None where none of them helps.

    Args:
      config: the run, which does not fit.
      fits: ``(changed run) -> bool``.
    """
    useful = [(name, change) for name, change in CHANGES if _changed(config, [change]) != config]
    for count in (1, 2, 3, 4):
        for chosen in itertools.combinations(useful, count):
            names = [name for name, _ in chosen]
            if len({name.partition("=")[0] for name in names}) == count and fits(
                _changed(config, [change for _, change in chosen])
            ):
                return names
    return None


def _changed(config: RunConfig, changes: list[dict[str, dict[str, object]]]) -> RunConfig:
    for change in changes:
        for section, values in change.items():
            if section == "reference" and config.reference.mode != "live":
                continue
            if section == "train" and config.train.batch_size < int(str(values["microbatches"])):
                continue
            config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    return config
