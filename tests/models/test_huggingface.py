"""Hugging Face folders: the published small model, sharded loading, export, and broken folders."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxalign
from jaxalign import files
from jaxalign.errors import ModelError
from jaxalign.models import huggingface
from jaxalign.models import weights_hash as hashing
from jaxalign.models.decoder_config import Source
from jaxalign.models.huggingface import load_policy, resolve, save_pretrained, weights_hash
from jaxalign.models.weights import WEIGHTS, read_slice, to_theirs


def equal(left, right) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), left, right))


@pytest.fixture(scope="module")
def loaded(stories):
    return load_policy(stories, dtype="float32")


def test_package_gives_the_public_names():
    assert jaxalign.load_policy is load_policy
    assert jaxalign.save_pretrained is save_pretrained
    assert "dpo" in jaxalign.METHODS
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        _ = jaxalign.load_polcy


def test_last_logits_equal_the_golden_ones(loaded, golden):
    policy, variables = loaded
    logits = policy.logits(variables, jnp.asarray([golden["ids"]]))[0, -1]
    np.testing.assert_allclose(logits, golden["last_logits"], atol=1e-4)


@pytest.mark.parametrize("attention", ["dense", "chunked"])
def test_token_logps_equal_the_golden_ones(stories, golden, attention):
    policy, variables = load_policy(stories, dtype="float32", attention=attention)
    ids = jnp.asarray(golden["story_ids"])
    logps = jax.nn.log_softmax(policy.logits(variables, ids[None]))[0]
    np.testing.assert_allclose(logps[jnp.arange(len(ids) - 1), ids[1:]], golden["story_token_logprobs"], atol=1e-4)


def test_tied_embeddings_have_no_head(loaded):
    assert "head" not in loaded[1]["params"]


def test_types_on_loading(stories):
    _, variables = load_policy(stories, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    _, exact = load_policy(stories)
    assert equal(variables, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact))


def test_loading_onto_eight_devices_equals_one(loaded, stories):
    policy, variables = loaded
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    rules = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

    def shardings(axes, shape):
        del shape
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*(rules.get(axis) for axis in axes)))

    _, sharded = load_policy(stories, dtype="float32", shardings=shardings)
    assert equal(jax.device_get(sharded), jax.device_get(variables))
    kernel = sharded["params"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(5, 32, 4, 8)}
    tokens = jnp.arange(24).reshape(2, 12)
    wanted = np.asarray(policy.logits(variables, tokens))
    np.testing.assert_allclose(
        policy.logits(sharded, tokens) / abs(wanted).max(), wanted / abs(wanted).max(), atol=1e-5
    )


def test_only_the_needed_slices_are_read(stories, monkeypatch):
    """With every axis split, no read is larger than a shard's own part of one tensor."""
    mesh = jax.make_mesh((8,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    split = {"embed": "all", "vocab": "all"}

    def shardings(axes, shape):
        del shape
        spec, used = [], False
        for axis in axes:
            spec.append(None if used else split.get(axis))
            used = used or spec[-1] is not None
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    read = []

    class Counting:
        def __init__(self, tensor):
            self.tensor = tensor

        def __getitem__(self, index):
            piece = self.tensor[index]
            read.append(piece.size / np.prod(self.tensor.get_shape()))
            return piece

    real = huggingface.read_slice
    monkeypatch.setattr(huggingface, "read_slice", lambda tensor, *rest: real(Counting(tensor), *rest))
    load_policy(stories, shardings=shardings)
    assert set(read) == {1 / 8}


def test_layouts_are_inverse_and_slices_agree(make_tiny):
    config = make_tiny()[0].config
    size = {"V": 61, "D": 24, "H": 4, "G": 2, "C": 8, "F": 40, "O": 6}
    rng = np.random.default_rng(0)
    for weight in WEIGHTS.values():
        ours = rng.normal(size=[size[letter] for letter in weight.ours.split()])
        theirs = to_theirs(ours, weight, config, outputs=6)
        index = tuple(slice(n // 4, n // 2 + 1) for n in ours.shape)
        np.testing.assert_array_equal(read_slice(theirs, weight, config, index, outputs=6), ours[index])


@pytest.mark.parametrize("shard_bytes", [5e9, 2e5])
def test_export_and_import_are_bit_equal(loaded, stories, tmp_path, shard_bytes):
    policy, variables = loaded
    save_pretrained(policy, variables, tmp_path / "out", tokenizer=stories, max_shard_bytes=shard_bytes)
    again, others = load_policy(tmp_path / "out", dtype="float32")
    assert equal(variables, others)
    assert again.config == policy.config
    assert weights_hash(tmp_path / "out") == weights_hash(stories) == weights_hash(variables, policy.config)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "README.md", "tokenizer.json", "tokenizer_config.json"} <= files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # Nothing of the staging is left.
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == json.loads((stories / "generation_config.json").read_text())
    shards = sorted(file for file in files if file.endswith(".safetensors"))
    if shard_bytes > 1e9:
        assert shards == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert len(shards) > 1
    tensors = {name: array for file in shards for name, array in load_file(tmp_path / "out" / file).items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    for name, array in load_file(stories / "model.safetensors").items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize(
    ("own", "given", "listed"),
    [(None, [2], 2), (2, [], 2), (2, [2], 2), (2, [2, 5], [2, 5]), ([5, 2], [2, 7], [5, 2, 7])],
)
def test_end_tokens_are_listed_beside_the_configurations_own(make_tiny, tmp_path, own, given, listed):
    policy, variables = make_tiny()
    source = Source({}, {} if own is None else {"eos_token_id": own})
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, source=source))
    save_pretrained(policy, variables, tmp_path / "m", end_tokens=given)
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text()) == {"eos_token_id": listed}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"family": "llama", "qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied_embeddings": True},
        {"family": "mistral", "windows": 7},
        {"family": "qwen2", "qkv_bias": True, "windows": [None, 5, 5]},
        {"family": "qwen3", "qk_norm": True, "rope_scaling": {"kind": "linear", "factor": 2.0}},
    ],
    ids=["llama", "llama biases", "mistral", "qwen2", "qwen3"],
)
def test_models_from_scratch_round_trip(make_tiny, tmp_path, fields):
    policy, variables = make_tiny(**fields)
    save_pretrained(policy, variables, tmp_path / "m")
    again, others = load_policy(tmp_path / "m", dtype="float32")
    assert again.config == policy.config
    assert equal(variables, others)
    tokens = jnp.arange(10)[None]
    np.testing.assert_array_equal(again.logits(others, tokens), policy.logits(variables, tokens))


def test_export_of_sharded_variables_and_in_bfloat16(loaded, stories, tmp_path):
    policy, variables = loaded
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(names, leaf):
        spec = jax.sharding.PartitionSpec(*("fsdp" if name == "embed" else None for name in names))
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    sharded = jax.tree.map(place, policy.axes(), variables, is_leaf=lambda leaf: isinstance(leaf, tuple))
    save_pretrained(policy, sharded, tmp_path / "m", dtype="bfloat16")
    _, others = load_policy(tmp_path / "m")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    assert equal(jax.device_get(rounded), jax.device_get(others))
    assert load_file(tmp_path / "m" / "model.safetensors")["model.norm.weight"].dtype == ml_dtypes.bfloat16
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    # The hash is of values: bfloat16 values stored in either type are the same model, rounded ones another.
    assert weights_hash(tmp_path / "m") == weights_hash(rounded, policy.config) != weights_hash(stories)


def test_hash_sees_weights_and_architecture(make_tiny):
    policy, variables = make_tiny()
    one = weights_hash(variables, policy.config)
    changed = jax.tree.map(lambda leaf: leaf, variables)
    scale = changed["params"]["final_norm"]["scale"]
    changed["params"]["final_norm"]["scale"] = scale.at[0].set(jnp.nextafter(scale[0], 9.0))
    assert weights_hash(changed, policy.config) != one
    assert weights_hash(variables, make_tiny(rope_theta=9.0)[0].config) != one
    with pytest.raises(ModelError, match="DecoderConfig"):
        weights_hash(variables)


def test_hash_of_a_folder_follows_its_files(stories, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(stories, folder)
    before = weights_hash(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    assert weights_hash(folder) != before


def test_the_hash_of_large_weights_is_read_from_the_cache(stories, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(files, "SETTLED", -1.0)
    folder = shutil.copytree(stories, tmp_path / "m")
    found = [weights_hash(folder)]
    hashing._folder_hash.cache_clear()  # another process
    with monkeypatch.context() as patched:
        patched.setattr(hashing, "_digest", lambda *_: pytest.fail("it reads the weights"))
        found.append(weights_hash(folder))
    assert found == [weights_hash(stories)] * 2
    os.utime(folder / "model.safetensors", (1e9, 1e9 + 1))
    with monkeypatch.context() as patched:
        patched.setattr(hashing, "_digest", lambda *_: "read")
        assert weights_hash(folder) == "read"


def test_card_says_what_is_known(make_tiny, tmp_path):
    policy, variables = make_tiny()
    save_pretrained(policy, variables, tmp_path / "a", card={"license": None, "method": None, "datasets": []})
    text = (tmp_path / "a" / "README.md").read_text()
    assert "None" not in text
    assert "license" not in text
    facts = {
        "license": "mit",
        "method": "dpo",
        "base_model": "o/m",
        "datasets": ["d"],
        "options": {"beta": 0.1, "x": None},
    }
    save_pretrained(policy, variables, tmp_path / "a", card=facts)  # Replaces the earlier export.
    text = (tmp_path / "a" / "README.md").read_text()
    assert 'license: "mit"' in text
    assert "| beta | 0.1 |" in text
    assert "None" not in text
    save_pretrained(policy, variables, tmp_path / "a", card="# Mine\n")
    assert (tmp_path / "a" / "README.md").read_text() == "# Mine\n"
    with pytest.raises(ModelError, match="Did you mean 'license'"):
        save_pretrained(policy, variables, tmp_path / "b", card={"licence": "mit"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_export_leaves_other_files_alone(make_tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ModelError, match=r"thesis\.tex"):
        save_pretrained(*make_tiny(), tmp_path)
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        save_pretrained(*make_tiny(), tmp_path / "m", dtype="bfloat")


@pytest.fixture
def broken(stories, tmp_path):
    """A copy of the model, its tensors, and a way to write them back."""
    folder = tmp_path / "broken"
    shutil.copytree(stories, folder)
    return folder, load_file(folder / "model.safetensors")


def test_all_wrong_tensors_are_told_at_once(broken):
    folder, tensors = broken
    tensors["model.layers.3.mlp.up_proj.weights"] = tensors.pop("model.layers.3.mlp.up_proj.weight")
    tensors["model.layers.1.self_attn.q_proj.weight"] = np.zeros((64, 32), np.float32)
    tensors["model.layers.5.input_layernorm.weight"] = np.zeros(64, np.float32)
    tensors["model.norm.weight"] = np.zeros(64, np.int8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)  # A harmless buffer.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # As harmless, where embeddings are tied.
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_policy(folder)
    text = str(error.value)
    assert len(error.value.problems) == 5
    assert "'model.layers.3.mlp.up_proj.weight' is missing, expected [172, 64]. Did you mean" in text
    assert "'model.layers.1.self_attn.q_proj.weight' has shape [64, 32], config.json implies [64, 64]" in text
    assert "'model.norm.weight' is I8" in text
    assert "'model.layers.5.input_layernorm.weight' is unexpected" in text


def test_untied_without_a_head(broken):
    folder, _ = broken
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"lm_head.weight' is missing.*tie_word_embeddings = true"):
        load_policy(folder)


def test_broken_files(broken, tmp_path):
    folder, tensors = broken
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_policy(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"It holds pytorch_model\.bin; convert to safetensors first"):
        load_policy(folder)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        weights_hash(folder)
    first = {name: tensors[name] for name in list(tensors)[:3]}
    save_file(first, folder / "a.safetensors")
    weight_map = {**dict.fromkeys(first, "a.safetensors"), "x": "b.safetensors", "y": "a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError) as error:
        load_policy(folder)
    assert len(error.value.problems) == 2
    assert error.match(r"b\.safetensors: no such file")
    assert error.match("holds no tensor 'y'")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="'weight_map' is missing"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_names_that_are_no_folder(name):
    with pytest.raises(ModelError, match=r"does not exist\. Expected a Hugging Face folder or a hub id"):
        load_policy(name)


def test_hub_ids_offline(monkeypatch):
    # conftest.py sets HF_HUB_OFFLINE.
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_policy("nobody/no-such-model")
    with pytest.raises(ModelError, match="neither a folder nor a valid hub id"):
        load_policy("no body/no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "nobody/no-such-model", "no body/no-such-model"])
def test_a_name_that_is_no_model_is_told_with_its_setting(name):
    with pytest.raises(ModelError, match=f"^reference.source: {name!r}"):
        resolve(name, option="reference.source")
