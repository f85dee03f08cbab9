"""Memory of a training step on each device, from shapes alone.

What is counted, per device, with full sharding over ``fsdp`` and ``tensor``:

=============  =================================================================================================
weights        ``model.param_dtype``, split over fsdp x tensor
optimizer      its float32 moments (adamw 2, lion, rmsprop and sgd 1, adafactor about none), split likewise
sums           gradients of micro-batches, split likewise; nothing with one
copies         of the weights in ``model.dtype``, split likewise: the compiler casts them once, before the loops
reference      a live or moving copy of the weights, split likewise; nothing for a cached one; under adapters nothing
               for a live one, which is the frozen weights, and a copy of the factors for a moving one
kept           what the backward pass keeps of every layer: with remat ``full`` the block's input, with ``dots`` the
               products' results, with ``none`` everything
blocks         at work in the blocks: the gradients, one block's own activations, what fsdp gathers of a layer, and
               its gradient where it is trained, whole before fsdp scatters it
scoring        at work in scoring: the states of the scored tokens with their gradient, three float32 tiles of logits
               (`jaxalign.vocabulary_tiles`), and a gathered block of the head with its gradient
=============  =================================================================================================

Blocks and scoring are at work one after the other: the larger of them counts.

Measured against `jax.stages.Compiled.memory_analysis` (arguments plus temporaries) of the same step:

* compiled ahead of time for TPU v5e (libtpu 0.0.52): docs/planning.md has the table, and says which of its programs
  the constants `COPIES`, `WORKING` and `GATHERED` come from;
* on eight simulated CPU devices, 4 million parameters, float32: see tests/studies/test_cost.py.

Other compilers share memory between arrays in other ways; GPUs were not measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax

from jaxalign.config import RunConfig
from jaxalign.logprobs import tile_shape
from jaxalign.models.adapters import Adapter
from jaxalign.models.attention_forms import form_name
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy

BYTES = {"float32": 4, "bfloat16": 2}
COPIES = 1.4
"""Of the weights in the arithmetic's precision: one for the forward and one for the backward pass, partly shared."""
WORKING = 2 / 3
"""Of a block's arrays, those that exist at once in its backward pass."""
GATHERED = 2 / 3
"""Of a layer's weights, what is gathered at once; of its gradient, what is whole at once."""
SCORES = 4
"""Float32 arrays of scores, ``[rows, H, T, T]``, that the dense attention of a block holds at once."""
KEPT_SCORES = 1.25
"""Of them, what each layer keeps with remat ``none``: the weights in float32, and the mask."""
FACTOR_BYTES = 4
"""Of a number in adapters: they are float32, whatever the base is stored in."""
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


def run_adapter(config: RunConfig) -> Adapter | None:
    """The low-rank adapters that a run trains, if it does."""
    settings = config.adapter
    if settings.kind == "none":
        return None
    return Adapter(settings.rank, settings.alpha, settings.targets, settings.rslora)


@functools.lru_cache(maxsize=64)
def adapter_size(decoder: DecoderConfig, adapter: Adapter, fsdp: int = 1, tensor: int = 1) -> float:
    """Parameters of an architecture's low-rank adapters on a device. Makes none.

    Only the axes that a factor shares with its weight are split: the second factor of most is whole on each device of
    ``fsdp``.
    """
    policy = build_policy(decoder, adapter=adapter)
    total = 0.0
    names = jax.tree.leaves(policy.axes()["lora"], is_leaf=lambda leaf: isinstance(leaf, tuple))
    for leaf, axes in zip(jax.tree.leaves(policy.abstract()["lora"]), names, strict=True):
        split = (fsdp if "embed" in axes else 1) * (tensor if {"heads", "kv_heads", "mlp"} & set(axes) else 1)
        total += math.prod(leaf.shape) / split
    return total


@dataclass(frozen=True)
class Parts:
    """Bytes on a device, see the module's text."""

    weights: float
    optimizer: float
    sums: float
    copies: float
    reference: float
    kept: float
    blocks: float
    scoring: float

    @property
    def total(self) -> float:
        """Of what is there all the time, and the larger of what is at work in the blocks and in scoring."""
        always = self.weights + self.optimizer + self.sums + self.copies + self.reference + self.kept
        return always + max(self.blocks, self.scoring)


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
      reference: the architecture of a reference that the step computes (`jaxalign.planning.references.computed`),
        whether or not it shares the policy's weights; None without one.
      train: False for a pass that only scores: no optimizer, no gradients, nothing kept for a backward pass.
    """
    data, fsdp, tensor = mesh
    shards = fsdp * tensor
    computed = BYTES[config.model.dtype]
    count = sizes(decoder)
    own = count.total * BYTES[config.model.param_dtype] / shards
    local = math.ceil(rows / (data * fsdp)) / config.train.microbatches
    tokens = local * row
    kept, working = _per_token(decoder, config.model.remat if train else "forward", tensor)
    largest = max(sizes(d).blocks / d.layers for d in (decoder, *([reference] if reference else ())))
    int8 = not train and config.reference.quantization == "int8"
    layer = GATHERED * largest / tensor * (1 if int8 else computed) if shards > 1 else 0.0
    tile = tile_shape(math.ceil(local * scored), math.ceil(decoder.vocab_size / tensor), "tpu")
    states = local * scored * decoder.width * computed
    # The head is gathered, and its gradient made and scattered, a block of the vocabulary at a time.
    head = decoder.width * tile.entries * (computed + 4 * train) if shards > 1 else 0.0
    scoring = 3 * tile.tokens * tile.entries * 4 + (1 + train) * states + head
    dense = form_name(config.model.attention, row, "tpu") == "dense"
    scores = local * decoder.heads / tensor * row * row * 4 if dense else 0.0
    blocks = tokens * working * computed + SCORES * scores + layer
    if not train:
        own = reference_bytes(config, decoder) / shards
        return Parts(own, 0, 0, _copied_bytes(config, decoder, int8=int8) / shards, 0, 0, blocks, scoring)
    trained, moments = own, MOMENTS[config.optimizer.name] * count.total * 4 / shards
    scattered = layer if fsdp > 1 else 0.0
    adapter = run_adapter(config)
    if adapter is not None:
        scattered = 0.0
        trained = adapter_size(decoder, adapter, fsdp, tensor) * FACTOR_BYTES
        moments = MOMENTS[config.optimizer.name] * trained
        own += trained
    return Parts(
        weights=own,
        optimizer=moments,
        sums=trained if config.train.microbatches > 1 else 0.0,
        copies=_copied_bytes(config, decoder) * COPIES / shards,
        reference=0 if reference is None else resident_bytes(config, reference, fsdp, tensor),
        kept=decoder.layers * (tokens * kept * computed + KEPT_SCORES * scores * (config.model.remat == "none")),
        blocks=trained + blocks + scattered,
        scoring=scoring,
    )


def resident_bytes(config: RunConfig, reference: DecoderConfig, fsdp: int = 1, tensor: int = 1) -> float:
    """Bytes that a reference which each step computes adds on a device, as `jaxalign.build.reference` makes it.

    Args:
      config: the run, resolved.
      reference: the reference's architecture.
      fsdp: devices along this axis.
      tensor: likewise.
    """
    adapter, settings = run_adapter(config), config.reference
    if adapter is not None and settings.mode == "moving":  # a copy of what is trained
        each = BYTES[settings.dtype] if settings.dtype else FACTOR_BYTES
        return adapter_size(reference, adapter, fsdp, tensor) * each
    if adapter is not None and settings.source == "policy" and settings.quantization == "none":
        return 0.0  # the frozen weights under the adapters
    return reference_bytes(config, reference) / (fsdp * tensor)


def reference_bytes(config: RunConfig, decoder: DecoderConfig) -> float:
    """Bytes of a whole reference's weights on all devices together; int8 is for the projections of its blocks."""
    settings, count = config.reference, sizes(decoder)
    whole = BYTES[config.model.param_dtype]
    if settings.quantization == "int8":
        return count.blocks + (count.embedding + count.head) * whole
    if settings.mode == "moving" and settings.dtype:
        whole = BYTES[settings.dtype]
    return count.total * whole


def _copied_bytes(config: RunConfig, decoder: DecoderConfig, *, int8: bool = False) -> float:
    """Bytes of one copy of the weights in the arithmetic's precision; nothing where they have it."""
    if config.model.param_dtype == config.model.dtype:
        return 0.0
    count = sizes(decoder)
    return (count.embedding + count.head if int8 else count.total) * BYTES[config.model.dtype]


def _per_token(decoder: DecoderConfig, remat: str, tensor: int) -> tuple[float, float]:
    """Numbers that are kept of each layer, and those of the one block that is at work, for each token."""
    width, mlp = decoder.width, decoder.mlp_width / tensor
    query = decoder.heads * decoder.head_dim / tensor
    value = decoder.kv_heads * decoder.head_dim / tensor
    products = query + 2 * value + width + 2 * mlp + width
    everything = products + 6 * width + 6 * query + 2 * mlp
    unfused = 2 * width + 3 * query + 2 * mlp  # casts, masks and products that are kept where nothing is made again
    if remat == "forward":
        return 0.0, width + products
    kept = {"none": everything + unfused, "dots": width + products, "full": width}[remat]
    return kept, WORKING * everything if remat in ("full", "dots") else products
