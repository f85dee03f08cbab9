"""Hugging Face folders: read a model into the devices' shards, write one back, and name weights by their content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.adapters import COLLECTION, init_adapter, without_adapter
from jaxalign.models.config_json import checkpoint_kind, read_config
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.export import save_pretrained, tree_paths
from jaxalign.models.heads import init_head, read_head
from jaxalign.models.policy import Constrain, Policy, build_policy, identity
from jaxalign.models.product import Axes
from jaxalign.models.safetensors_files import DTYPES, Tensors
from jaxalign.models.weights import IGNORED_TENSORS, WEIGHTS, Weight, read_slice, their_shape
from jaxalign.models.weights_hash import weights_hash

__all__ = ["load_policy", "load_variables", "read_config", "resolve", "save_pretrained", "weights_hash"]

Shardings = Callable[[Axes, tuple[int, ...]], jax.sharding.Sharding]
"""From a parameter's logical axis names and its shape to its sharding (`MeshPlan.sharding`)."""


def load_policy(
    path_or_id: str | Path,
    *,
    dtype: str = "bfloat16",
    param_dtype: str = "float32",
    shardings: Shardings | None = None,
    constrain: Constrain = identity,
    remat: str = "none",
    attention: str = "auto",
) -> tuple[Policy, dict[str, Any]]:
    """A pretrained model: its functions and its weights.

    Args:
      path_or_id: a folder, or a repository of the Hugging Face hub (``"owner/name"`` or ``"owner/name@revision"``).
      dtype: of the arithmetic.
      param_dtype: the weights are converted to it as they are read.
      shardings: from a parameter's logical axes and shape to its sharding; None puts everything on the default device.
      constrain: see `build_policy`.
      remat: see `build_policy`.
      attention: see `build_policy`.

    Returns:
      The policy and ``{"params": nested dict of arrays}``. A reward model or a token classifier (transformers'
      ``*ForSequenceClassification`` with one label, ``*ForTokenClassification``) has its linear head in
      `Policy.outputs` and ``"head"`` beside ``"params"``, and no language model's head.

    Raises:
      ModelError: what is wrong with the folder, all at once, before any weight is read.

    Example:
      >>> policy, variables = load_policy("Qwen/Qwen2.5-0.5B", dtype="float32")  # doctest: +SKIP
      >>> policy.logits(variables, tokens)                                       # doctest: +SKIP
    """
    folder = resolve(path_or_id)
    config = read_config(folder)
    head_outputs = read_head(Tensors(folder), config)
    policy = build_policy(
        config,
        dtype=dtype,
        param_dtype=param_dtype,
        constrain=constrain,
        remat=remat,
        attention=attention,
        head_outputs=head_outputs,
        language_head=not head_outputs,
    )
    return policy, load_variables(folder, policy, shardings=shardings)


def load_variables(
    folder: str | Path,
    policy: Policy,
    *,
    param_dtype: str | None = None,
    shardings: Shardings | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The weights of a folder, read slice by slice straight into each device's shard.

    The host holds one shard of one parameter at a time; devices that hold the same shard get it from one read.

    A policy with a linear head starts from any causal language model: the folder has no such head, so a fresh one is
    drawn from `seed`, the same for any sharding. From the folder of a classifier its head is read. Adapters start
    fresh, drawn from `seed` as well.

    Args:
      folder: a Hugging Face folder with one safetensors file or an index of several.
      policy: says the expected tree.
      param_dtype: converted to; None = the policy's. A linear head is float32.
      shardings: see `load_policy`.
      seed: of a head that the folder does not have, and of adapters.

    Raises:
      ModelError: a classifier where a language model is expected, or another one than expected; else missing,
        unexpected and mis-shaped tensors, all at once. Before any is read.
    """
    tensors = Tensors(folder)
    abstract, axes = without_adapter(policy.abstract()), without_adapter(policy.axes())
    paths = tree_paths(abstract)
    fresh = _fresh_head(tensors, policy, seed)
    _check(tensors, [path for path in paths if path not in fresh], policy)
    dtype = np.dtype(policy.param_dtype if param_dtype is None else jnp.dtype(param_dtype))
    names = dict(zip(paths, jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)), strict=True))
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def load(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        shape = leaf.shape
        sharding = default if shardings is None else shardings(names[path], shape)
        # Like jax.make_array_from_callback, but that one keeps all the shards of this host before it places any.
        replicas: dict[tuple[tuple[int, int], ...], list[Any]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            pieces = (slice(None),) * len(shape) if index is None else index
            spans = tuple(p.indices(n)[:2] for p, n in zip(pieces, shape, strict=True))
            replicas.setdefault(spans, []).append(device)
        placed = []
        for spans, devices in replicas.items():
            if path in fresh:
                shard = fresh[path][tuple(slice(*span) for span in spans)]
            else:
                kind = np.dtype(leaf.dtype) if path.startswith("score/") else dtype
                shard = _read(tensors, WEIGHTS[path], policy, spans, kind)
            placed += [jax.device_put(shard, device) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    leaves = [load(path, leaf) for path, leaf in zip(paths, jax.tree.leaves(abstract), strict=True)]
    variables = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    return variables if policy.adapter is None else variables | {COLLECTION: _fresh_adapter(policy, shardings, seed)}


def _fresh_adapter(policy: Policy, shardings: Shardings | None, seed: int) -> Any:
    """The factors of the policy's adapters at the start, made where they live."""
    abstract, axes = policy.abstract()[COLLECTION], policy.axes()[COLLECTION]
    placed = None
    if shardings is not None:
        placed = jax.tree.map(lambda leaf, names: shardings(names, leaf.shape), abstract, axes)
    return jax.jit(lambda rng: init_adapter(rng, abstract), out_shardings=placed)(jax.random.key(seed))


def _fresh_head(tensors: Tensors, policy: Policy, seed: int) -> dict[str, np.ndarray]:
    """The head by path, drawn, if the policy has one and the folder has none.

    Raises:
      ModelError: the folder has another kind of head than the policy.
    """
    config = read_config(tensors.folder)
    held, wanted = read_head(tensors, config), policy.head_outputs
    if not held:
        head = init_head(jax.random.key(seed), policy.config.width, wanted) if wanted else {}
        return {f"score/{name}": np.asarray(value) for name, value in head.items()}
    what = f"{tensors.folder}: this is a {checkpoint_kind(config).replace('_', ' ')} model ({_architecture(config)})"
    if not wanted:
        raise ModelError(
            f"{what}, expected a causal language model: it has a head of {held} output(s) that rates text, and cannot "
            "say how likely a token is. Give the folder of a language model."
        )
    if policy.language_head and not config.tied_embeddings:
        raise ModelError(
            f"{what}, which has no language model's head any more; this method trains one. Give the folder of a "
            "language model."
        )
    if held != wanted:
        raise ModelError(f"{what} whose head has {held} output(s), expected {wanted}.")
    return {}


def _architecture(config: DecoderConfig) -> str:
    return config.source.config["architectures"][0]


def _read(
    tensors: Tensors, weight: Weight, policy: Policy, spans: tuple[tuple[int, int], ...], dtype: np.dtype
) -> np.ndarray:
    config, outputs = policy.config, policy.head_outputs
    if "{layer}" not in weight.name:
        piece = read_slice(tensors.view(weight.name), weight, config, tuple(slice(*span) for span in spans), outputs)
        return np.ascontiguousarray(piece.astype(dtype))
    (first, last), *rest = spans
    shard = np.empty([stop - start for start, stop in spans], dtype)
    for layer in range(first, last):
        view = tensors.view(weight.name.format(layer=layer))
        shard[layer - first] = read_slice(view, weight, config, tuple(slice(*span) for span in rest))
    return shard


def _check(tensors: Tensors, paths: list[str], policy: Policy) -> None:
    config = policy.config
    expected: dict[str, tuple[int, ...]] = {}
    for path in paths:
        weight = WEIGHTS[path]
        shape = their_shape(weight, config, policy.head_outputs)
        layers = range(config.layers) if "{layer}" in weight.name else range(1)
        expected |= {weight.name.format(layer=layer): shape for layer in layers}
    unexpected = [name for name in tensors.files if name not in expected and not IGNORED_TENSORS.match(name)]
    if config.tied_embeddings or not policy.language_head:
        # Some exports store the head beside the embedding that it is tied to; and a reward model does without it.
        unexpected = [name for name in unexpected if name != WEIGHTS["head/kernel"].name]
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            hint = did_you_mean(name, unexpected)
            if name == WEIGHTS["head/kernel"].name:
                hint += " Should config.json say tie_word_embeddings = true?"
            problems.append(f"{tensors.folder}: tensor {name!r} is missing, expected {list(shape)}.{hint}")
        elif tensors.shape(name) != shape:
            got = list(tensors.shape(name))
            problems.append(f"{tensors.folder}: tensor {name!r} has shape {got}, config.json implies {list(shape)}.")
        elif tensors.dtype(name) not in DTYPES:
            problems.append(
                f"{tensors.folder}: tensor {name!r} is {tensors.dtype(name)}, expected one of {', '.join(DTYPES)}; "
                "quantised weights are not modelled."
            )
    for name in unexpected:
        problems.append(f"{tensors.folder}: tensor {name!r} is unexpected: the architecture has no place for it.")
    if len(problems) > 40:
        problems = [*problems[:40], f"{tensors.folder}: and {len(problems) - 40} problems more."]
    if problems:
        raise ModelError(problems)


def resolve(path_or_id: str | Path, *, option: str = "model") -> Path:
    """The local folder of a path or of a hub repository, downloaded (or from the cache) when it is none.

    Args:
      path_or_id: the path or the id.
      option: the setting that it comes from, for messages: ``reference.source``.

    Raises:
      ModelError: no such folder, and it cannot be had from the hub.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") != 1 or "\\" in name:
        what = "is not a folder" if path.exists() else "does not exist"
        raise ModelError(f"{option}: {name!r} {what}. Expected a Hugging Face folder or a hub id like 'owner/name'.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{option}: {name!r} is neither a folder nor a valid hub id ({error}).") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{option}: {name!r} is no folder here, is not in the local Hugging Face cache, and the hub cannot be "
            "reached (offline?). Download it first, or give the path of a folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{option}: {name!r} cannot be had from the hub: {error}") from error
