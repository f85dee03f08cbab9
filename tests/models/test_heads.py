"""The linear head of reward models and classifiers: its parameters, its folders, its padding token."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.errors import ModelError
from jaxalign.models.decoder_config import Source
from jaxalign.models.heads import SCALE, abstract_head, apply_head, head_axes, init_head
from jaxalign.models.huggingface import load_policy, load_variables, save_pretrained, weights_hash
from jaxalign.models.padding import padding_token, with_padding
from jaxalign.models.policy import build_policy
from jaxalign.types import causal_rows

TOKENS = jnp.arange(1, 11)[None]
IDS = {"pad_token_id": 0, "eos_token_id": 2}


@pytest.fixture
def make_rater(make_tiny):
    """A small model with a head and no language model's; `ids` are the special ids of its configuration."""

    def make(outputs=1, build=None, ids=IDS, **fields):
        policy, variables = make_tiny({"head_outputs": outputs, "language_head": False, **(build or {})}, **fields)
        source = Source(dict(ids))
        return dataclasses.replace(policy, config=dataclasses.replace(policy.config, source=source)), variables

    return make


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def equal(left, right) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), left, right))


@pytest.mark.parametrize(("outputs", "names"), [(1, {"kernel"}), (2, {"kernel", "bias"}), (3, {"kernel", "bias"})])
def test_parameters(outputs, names):
    head = init_head(jax.random.key(0), 512, outputs)
    assert set(head) == set(head_axes(outputs)) == names
    assert shapes(head) == shapes(abstract_head(512, outputs))
    assert {name: len(axes) for name, axes in head_axes(outputs).items()} == {n: v.ndim for n, v in head.items()}
    assert head_axes(outputs)["kernel"] == ("embed", None)
    assert float(head["kernel"].std()) == pytest.approx(SCALE, rel=0.1)
    assert all((value == 0).all() for name, value in head.items() if name == "bias")
    assert equal(head, init_head(jax.random.key(0), 512, outputs))
    assert not equal(head, init_head(jax.random.key(1), 512, outputs))


def test_outputs_are_a_product_in_float32():
    """States of bfloat16 and of any leading shape; in float64, by hand."""
    rng = np.random.default_rng(0)
    head = {"kernel": jnp.asarray(rng.normal(size=(32, 2)), jnp.float32), "bias": jnp.asarray([0.5, -2.0])}
    for dtype in (jnp.float32, jnp.bfloat16):
        states = jnp.asarray(rng.normal(size=(3, 5, 32)), dtype)
        outputs = apply_head({"head": head}, states)
        assert outputs.dtype == jnp.float32
        wanted = np.asarray(states, np.float64) @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-5)
        # One state is multiplied by another routine than fifteen; on some machines it adds up in another order.
        np.testing.assert_allclose(apply_head({"head": head}, states[1, 2]), wanted[1, 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_policy_with_a_head(make_tiny, tied):
    """`init`, `abstract` and `axes` have one structure; the head is float32 where the rest is not."""
    build = {"head_outputs": 2, "param_dtype": "bfloat16"}
    policy, _ = make_tiny(build, tied_embeddings=tied)
    variables = policy.init(jax.random.key(0))
    assert shapes(variables) == shapes(policy.abstract())
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(policy.axes(), is_leaf=is_names) == jax.tree.structure(variables)
    assert policy.axes()["head"] == head_axes(2)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables["head"])} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables["params"])} == {"bfloat16"}
    assert policy.outputs is not None
    assert policy.outputs(variables, policy.hidden(variables, causal_rows(TOKENS))).shape == (1, 10, 2)
    plain, _ = make_tiny({"param_dtype": "bfloat16"}, tied_embeddings=tied)
    assert plain.outputs is None
    assert equal(plain.init(jax.random.key(0))["params"], variables["params"])  # the head has draws of its own
    np.testing.assert_array_equal(policy.logits(variables, TOKENS), plain.logits(variables, TOKENS))


@pytest.mark.parametrize("tied", [False, True])
def test_a_rater_is_no_language_model(make_rater, tied):
    policy, variables = make_rater(tied_embeddings=tied)
    assert "head" not in variables["params"]
    for use in (
        lambda: policy.head(variables),
        lambda: policy.logits(variables, TOKENS),
        lambda: policy.prefill(variables, TOKENS, jnp.array([10]), 12),
    ):
        with pytest.raises(ModelError, match="can neither generate nor score"):
            use()
    with pytest.raises(ModelError, match="head_outputs is 0, expected >= 1"):
        build_policy(policy.config, language_head=False)
    with pytest.raises(ModelError, match="head_outputs is -1, expected >= 0"):
        build_policy(policy.config, head_outputs=-1)


def test_gradients_reach_head_and_backbone(make_rater):
    policy, variables = make_rater()

    def reward(variables):
        return policy.outputs(variables, policy.hidden(variables, causal_rows(TOKENS)))[0, -1, 0]

    gradient = jax.grad(reward)(variables)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_round_trip_is_bit_equal(make_rater, tmp_path, family, outputs):
    fields = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True, "tied_embeddings": True}}.get(family, {})
    policy, variables = make_rater(outputs, family=family, **fields)
    save_pretrained(policy, variables, tmp_path / "m")
    again, others = load_policy(tmp_path / "m", dtype="float32")
    assert (again.config, again.head_outputs, again.language_head) == (policy.config, outputs, False)
    assert equal(variables, others)
    assert weights_hash(tmp_path / "m") == weights_hash(variables, policy.config)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    kind = "ForSequenceClassification" if outputs == 1 else "ForTokenClassification"
    assert config["architectures"] == [{"qwen2": "Qwen2", "qwen3": "Qwen3"}.get(family, family.title()) + kind]
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 2)
    names = {1: ["reward"], 2: ["wrong", "right"], 3: ["LABEL_0", "LABEL_1", "LABEL_2"]}[outputs]
    assert config["id2label"] == {str(i): name for i, name in enumerate(names)}
    assert config["label2id"] == {name: i for i, name in enumerate(names)}
    assert not (tmp_path / "m" / "generation_config.json").exists()
    assert "text-generation" not in (tmp_path / "m" / "README.md").read_text()
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert tensors["score.weight"].shape == (outputs, 24)
    assert ("score.bias" in tensors) == (outputs > 1)
    assert "lm_head.weight" not in tensors
    save_pretrained(again, others, tmp_path / "again")  # From the configuration that was read.
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "m" / "config.json").read_text()


def test_hash_sees_the_head(make_rater):
    policy, variables = make_rater()
    other = variables | {"head": {"kernel": variables["head"]["kernel"] + 1}}
    without = {"params": variables["params"]}
    hashes = {weights_hash(given, policy.config) for given in (variables, other, without)}
    assert len(hashes) == 3


def test_rounded_export_keeps_the_types(make_rater, tmp_path):
    policy, variables = make_rater()
    save_pretrained(policy, variables, tmp_path / "m", dtype="bfloat16")
    _, others = load_policy(tmp_path / "m", param_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(others["params"])} == {"bfloat16"}
    assert equal(others["head"], jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), variables["head"]))


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_gets_a_fresh_head(make_tiny, tmp_path, tied):
    """The same for one seed, in any sharding; the language model's head is left where it is."""
    plain, params = make_tiny(tied_embeddings=tied)
    save_pretrained(plain, params, tmp_path / "m")
    policy, _ = make_tiny({"head_outputs": 2, "language_head": False}, tied_embeddings=tied)
    loaded = load_variables(tmp_path / "m", policy, seed=3)
    assert equal(loaded["head"], init_head(jax.random.key(3), 24, 2))
    # Compiled, a constant factor is multiplied in another order.
    np.testing.assert_allclose(loaded["head"]["kernel"], policy.init(jax.random.key(3))["head"]["kernel"], rtol=1e-6)
    assert equal(loaded["params"], {name: value for name, value in params["params"].items() if name != "head"})
    assert not equal(loaded["head"], load_variables(tmp_path / "m", policy, seed=4)["head"])

    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def shardings(axes, shape):
        del shape
        spec = jax.sharding.PartitionSpec(*("fsdp" if axis == "embed" else None for axis in axes))
        return jax.sharding.NamedSharding(mesh, spec)

    sharded = load_variables(tmp_path / "m", policy, shardings=shardings, seed=3)
    assert equal(jax.device_get(sharded), jax.device_get(loaded))
    assert sharded["head"]["kernel"].sharding.spec == jax.sharding.PartitionSpec("fsdp", None)
    save_pretrained(policy, sharded, tmp_path / "sharded", kind="token_classification")
    assert equal(jax.device_get(load_policy(tmp_path / "sharded")[1]), jax.device_get(loaded))


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_beside_a_language_model_is_dropped_at_export(make_tiny, tmp_path, tied):
    policy, variables = make_tiny({"head_outputs": 3}, tied_embeddings=tied)
    save_pretrained(policy, variables, tmp_path / "m")
    again, others = load_policy(tmp_path / "m", dtype="float32")
    assert again.outputs is None
    assert equal(others, {"params": variables["params"]})
    assert "id2label" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert weights_hash(tmp_path / "m") == weights_hash(others, policy.config)
    save_pretrained(policy, variables, tmp_path / "c", kind="token_classification")
    assert equal(load_policy(tmp_path / "c")[1]["head"], variables["head"])


def test_a_kind_that_the_policy_is_not(make_tiny, make_rater, tmp_path):
    rater, plain = make_rater(), make_tiny()
    with pytest.raises(ModelError, match=r"'causal_lm', but .* 1 output\(s\), without .* can be sequence_class"):
        save_pretrained(*rater, tmp_path / "m", kind="causal_lm")
    with pytest.raises(ModelError, match=r"'token_classification', but .* 1 output\(s\)"):
        save_pretrained(*rater, tmp_path / "m", kind="token_classification")
    with pytest.raises(ModelError, match=r"'sequence_classification', but .* 0 output\(s\), with .* can be causal_lm"):
        save_pretrained(*plain, tmp_path / "m", kind="sequence_classification")
    with pytest.raises(ModelError, match="Did you mean 'causal_lm'"):
        save_pretrained(*plain, tmp_path / "m", kind="causal_ml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_a_rater_where_another_model_is_expected(make_tiny, make_rater, tmp_path, tied):
    fields = {"tied_embeddings": tied}
    save_pretrained(*make_rater(**fields), tmp_path / "m")
    what = r"sequence classification model \(LlamaForSequenceClassification\)"
    with pytest.raises(ModelError, match=what + ", expected a causal language model"):
        load_variables(tmp_path / "m", make_tiny(**fields)[0])
    with pytest.raises(ModelError, match=what + r" whose head has 1 output\(s\), expected 2"):
        load_variables(tmp_path / "m", make_rater(2, **fields)[0])
    both, _ = make_tiny({"head_outputs": 1}, **fields)
    if tied:  # The embedding is the language model's head, so nothing is missing.
        assert "head" in load_variables(tmp_path / "m", both)
    else:
        with pytest.raises(ModelError, match=what + ", which has no language model's head any more"):
            load_variables(tmp_path / "m", both)


def test_classifiers_that_are_not_modelled(make_rater, tmp_path):
    folder = tmp_path / "m"
    save_pretrained(*make_rater(2), folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    bias = tensors.pop("score.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"2 label\(s\) without a bias is not modelled, expected 2 or more"):
        load_policy(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(ModelError, match="with 2 labels is not modelled, expected a reward model: 1 label"):
        load_policy(folder)
    kernel = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"'score.weight' is missing, which architecture 'LlamaForSeq"):
        load_policy(folder)
    save_file(tensors | {"score.weight": kernel, "score.bias": bias}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForQuestionAnswering"]}))
    with pytest.raises(ModelError, match=r"'LlamaForQuestionAnswering' is not modelled, expected one of LlamaForC"):
        load_policy(folder)


def tokenizer(**special):
    """Words of one letter, with the special tokens that are named."""
    import tokenizers
    import transformers

    vocabulary = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<turn>", *"abcdefgh"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", **special)


@pytest.mark.parametrize(
    ("special", "ends", "token"),
    [
        ({"pad_token": "<pad>", "unk_token": "<unk>"}, (), 0),
        ({"pad_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}, (), 3),
        ({"pad_token": "</s>", "bos_token": "<s>"}, (), 1),
        ({"bos_token": "<s>"}, (), 1),
        ({"pad_token": "<pad>", "bos_token": "<s>"}, (2, 0), 1),  # The template ends turns with <pad>.
        ({"pad_token": "</s>", "additional_special_tokens": ["<turn>"]}, (), 4),
        ({"pad_token": "</s>", "additional_special_tokens": ["<turn>"]}, (4,), None),
        ({}, (), None),
    ],
)
def test_padding_never_ends_a_completion(make_tiny, special, ends, token):
    config, given = make_tiny()[0].config, tokenizer(**special)
    if token is None:
        with pytest.raises(ModelError, match=r"every special token known here does \(2.*add_special_tokens"):
            padding_token(config, given, ends)
        return
    assert padding_token(config, given, ends) == token
    padded = with_padding(given, token)
    assert padded.pad_token_id == token
    assert (padded is given) == (given.pad_token_id == token)
    assert given.pad_token == special.get("pad_token")  # The caller's is left as it is.


def test_padding_of_an_export(make_rater, tmp_path):
    import transformers

    policy, variables = make_rater(ids={"eos_token_id": 2, "pad_token_id": 2})
    given = tokenizer(pad_token="</s>", unk_token="<unk>")
    save_pretrained(policy, variables, tmp_path / "m", tokenizer=given)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["pad_token_id"] == 3
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m").pad_token_id == 3
    with pytest.raises(ModelError, match=r"does \(2\).*Give save_pretrained the tokenizer"):
        save_pretrained(policy, variables, tmp_path / "n")
    assert not (tmp_path / "n").exists()
