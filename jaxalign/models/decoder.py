"""The decoder: embedding, L scanned blocks, final norm.

The blocks are one traced body under ``nn.scan``, their parameters stacked on a leading axis, so compile time does not
grow with depth. Three uses share the body: rows (training, scoring), rows that also give their keys and values
(prefill), one token against a cache (decode).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.kernels.tree_attention import SAVED
from jaxalign.models import attention as forms
from jaxalign.models.adapters import COLLECTION, Adapter
from jaxalign.models.attention import Cache, Ranges
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.layers import (
    Embed,
    GatedMLP,
    Projection,
    RMSNorm,
    named,
    rope_angles,
    rope_frequencies,
    rotate,
)
from jaxalign.models.product import Torus

NO_WINDOW = 2**30
"""The window of a layer without one, where other layers have one: wider than any row."""

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}
"""What a block keeps for the backward pass: ``full`` recomputes all but the block's input, ``dots`` keeps the results
of the projections and of attention. ``none`` (no entry) keeps everything."""


class Settings(NamedTuple):
    """How the decoder runs; no part of the architecture."""

    dtype: Any
    param_dtype: Any
    attention: forms.AttentionForm
    constrain: Any
    remat: str
    adapter: Adapter | None = None
    torus: Torus | None = None


class PerLayer(NamedTuple):
    """What differs between layers besides parameters, scanned."""

    index: Int[Array, " L"]
    window: Int[Array, " L"] | None


class Shared(NamedTuple):
    """What all layers read. `ranges` is None when there is a cache; `angles` are of the queries' positions."""

    positions: Int[Array, "R T"]
    angles: tuple[Array, Array]
    ranges: Ranges | None


KeyValue = tuple[Array, Array]


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    config: DecoderConfig
    settings: Settings
    keep: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "R T D"], layer: PerLayer, shared: Shared, cache: Cache | None
    ) -> tuple[Array, Cache | None, KeyValue | None]:
        """What attention adds, the cache with this token, and keys and values if `keep`."""
        config, dtypes = self.config, {"dtype": self.settings.dtype, "param_dtype": self.settings.param_dtype}

        def project(name: str, heads: int, axis: str) -> Array:
            shape = (config.width, heads, config.head_dim)
            return Projection(
                equation="nd,dhc->nhc",
                shape=shape,
                axes=("embed", axis, "head"),
                inputs=config.width,
                bias_axes=2 * config.qkv_bias,
                adapter=self.settings.adapter,
                torus=self.settings.torus,
                name=name,
                **dtypes,
            )(x)

        query = project("query", config.heads, "heads")
        key = project("key", config.kv_heads, "kv_heads")
        value = project("value", config.kv_heads, "kv_heads")
        if config.qk_norm:
            query = RMSNorm(config.norm_epsilon, "head", name="query_norm", **dtypes)(query)
            key = RMSNorm(config.norm_epsilon, "head", name="key_norm", **dtypes)(key)
        query, key = rotate(query, shared.angles), rotate(key, shared.angles)

        window = layer.window
        if window is None and config.windows:
            window = config.windows[0]
        if cache is None:
            assert shared.ranges is not None
            out = self.settings.attention(query, key, value, shared.ranges, window)
        else:
            positions = shared.positions[:, 0]
            cache = forms.write(cache, layer.index, positions, key[:, 0], value[:, 0])
            out = forms.cached_attention(query, cache, layer.index, positions, window)
        out = Projection(
            equation="nhc,hcd->nd",
            shape=(config.heads, config.head_dim, config.width),
            axes=("heads", "head", "embed"),
            inputs=config.heads * config.head_dim,
            bias_axes=int(config.output_bias),
            scale=_output_scale(config),
            adapter=self.settings.adapter,
            torus=self.settings.torus,
            name="output",
            **dtypes,
        )(out)
        return out, cache, (key, value) if self.keep else None


class Block(nn.Module):
    """Norm, attention, add; norm, MLP, add."""

    config: DecoderConfig
    settings: Settings
    keep: bool

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Cache | None], layer: PerLayer, shared: Shared
    ) -> tuple[tuple[Array, Cache | None], KeyValue | None]:
        """The residual stream and the cache after the block."""
        config, dtypes = self.config, {"dtype": self.settings.dtype, "param_dtype": self.settings.param_dtype}
        x, cache = carry
        normed = RMSNorm(config.norm_epsilon, "embed", name="attention_norm", **dtypes)(x)
        out, cache, kept = Attention(config, self.settings, self.keep, name="attention")(normed, layer, shared, cache)
        x = x + out
        normed = RMSNorm(config.norm_epsilon, "embed", name="mlp_norm", **dtypes)(x)
        x = x + GatedMLP(
            width=config.width,
            mlp_width=config.mlp_width,
            activation=config.activation,
            bias=config.mlp_bias,
            output_scale=_output_scale(config),
            adapter=self.settings.adapter,
            torus=self.settings.torus,
            name="mlp",
            **dtypes,
        )(normed)
        return (self.settings.constrain(x, ("batch", "length", None)), cache), kept


class Decoder(nn.Module):
    """Hidden states after the final norm.

    Call with `ranges` (rows) or with `cache` (one token a sequence). `keep` gives the layers' keys and values,
    ``[L, R, T, G, C]`` each, as the third result.
    """

    config: DecoderConfig
    settings: Settings
    language_head: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        ranges: Ranges | None = None,
        cache: Cache | None = None,
        keep: bool = False,
    ) -> tuple[Float[Array, "R T D"], Cache | None, KeyValue | None]:
        """Hidden states, the cache with this token, and keys and values if `keep`."""
        config, settings = self.config, self.settings
        dtypes = {"dtype": settings.dtype, "param_dtype": settings.param_dtype}
        x = Embed(config.vocab_size, config.width, name="embed", **dtypes)(tokens)
        x = settings.constrain(x, ("batch", "length", None))

        block = Block
        if settings.remat != "none" and cache is None:
            # prevent_cse is for code outside of a scan; inside it only costs.
            block = nn.remat(Block, policy=REMAT_POLICIES[settings.remat], prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, COLLECTION: 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.layers,
            metadata_params={nn.meta.PARTITION_NAME: "layers"},
            check_constancy_invariants=self.is_initializing(),  # what a check costs: one more trace
        )(config, settings, keep, name="layers")
        windows = None
        if not config.uniform_window:
            windows = jnp.array([NO_WINDOW if window is None else window for window in config.windows], jnp.int32)
        angles = rope_angles(positions, rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
        per_layer = PerLayer(jnp.arange(config.layers, dtype=jnp.int32), windows)
        (x, cache), kept = scanned((x, cache), per_layer, Shared(positions, angles, ranges))
        x = RMSNorm(config.norm_epsilon, "embed", name="final_norm", **dtypes)(x)
        if self.language_head and not config.tied_embeddings:
            Head(config, settings, name="head")()
        return x, cache, kept


class Head(nn.Module):
    """The output head's matrix, ``[D, V]``. It is multiplied outside, only where a token is scored."""

    config: DecoderConfig
    settings: Settings

    @nn.compact
    def __call__(self) -> Float[Array, "D V"]:
        """The matrix."""
        shape = (self.config.width, self.config.vocab_size)
        init = named(nn.initializers.normal(0.02), ("embed", "vocab"))
        return self.param("kernel", init, shape, self.settings.param_dtype)


def _output_scale(config: DecoderConfig) -> float:
    """Initial scale of what each block adds, so that the sum over 2L additions keeps its size (GPT-2)."""
    return 1 / math.sqrt(2 * config.layers)
