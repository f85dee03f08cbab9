"""A tiny policy, some examples, and a step over them: what the tests of training share."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxalign.build.data import column_names
from jaxalign.data.pipeline import OrderedBatches, Packer
from jaxalign.data.records import ExampleSet
from jaxalign.data.row_plans import RowProgram, RowShape, plan_rows
from jaxalign.data.row_shapes import choose_programs, round_length
from jaxalign.methods import METHODS, Method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.mesh import make_mesh
from jaxalign.training.readings import wants_language_head
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step
from jaxalign.training.trainable import full
from tests import example_sets
from tests.bigram import bigram_policy

CONFIG = DecoderConfig(
    vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_positions=256,
    tied_embeddings=True,
)  # fmt: skip
REFERENCE_SEED, POLICY_SEED = 1, 2
OPTIONS = {"beta_dpo": {"scaling_factor": 0.1}}
"""With 0.6, its default, the beta of these pairs is 0.1 - 0.0955, which is the rounding of the sums times hundreds."""


def policy_for(method: Method, plan=None, small: bool = False):
    """A policy with the heads that the method trains; `small` = the bigram model instead of the decoder."""
    return _plain_policy(*_heads(method), small) if plan is None else _policy(*_heads(method), small, plan)


def variables_for(method: Method, small: bool = False):
    """The policy's variables and, differing from them, a reference's.

    With larger embeddings (and heads) than a fresh model's, so that the two disagree by nats and nothing cancels to
    rounding noise.
    """
    return _variables(*_heads(method), small)


def _heads(method: Method) -> tuple[int, bool]:
    outputs = method.head_outputs(method.resolve_options({}))
    return outputs, wants_language_head(method)


def _policy(outputs: int, language: bool, small: bool, plan):
    if small:
        return bigram_policy(CONFIG, head_outputs=outputs, **({} if plan is None else {"constrain": plan.constrain}))
    further = {} if plan is None else {"constrain": plan.constrain, "remat": "full"}
    return build_policy(CONFIG, dtype="float32", head_outputs=outputs, language_head=language, **further)


@functools.cache
def _plain_policy(outputs: int, language: bool, small: bool):
    return _policy(outputs, language, small, None)


@functools.cache
def _variables(outputs: int, language: bool, small: bool):
    policy = _plain_policy(outputs, language, small)

    @jax.jit
    def init(seed):
        fresh = policy.init(jax.random.key(seed))
        louder = {name: jax.tree.map(lambda x: 20.0 * x, fresh[name]) for name in fresh if name == "head"}
        if small:
            return fresh | louder
        params = fresh["params"]
        return louder | {"params": params | {"embed": jax.tree.map(lambda x: 8.0 * x, params["embed"])}}

    return init(POLICY_SEED), init(REFERENCE_SEED)


@pytest.fixture(scope="session")
def policy():
    return policy_for(METHODS["dpo"])


@pytest.fixture(scope="session")
def variables():
    return variables_for(METHODS["dpo"])


def examples_for(method_name: str, count: int = 16, longest: int = 12) -> ExampleSet:
    return example_sets.examples_for(METHODS[method_name], vocabulary=CONFIG.vocab_size, count=count, longest=longest)


@dataclass
class Outcome:
    """One step's numbers, by example."""

    loss: float
    metrics: dict[str, float]
    gradient: Any
    policy_sums: dict[int, np.ndarray]
    reference_sums: dict[int, np.ndarray]


def one_step(
    method_name: str,
    examples: ExampleSet,
    *,
    variables=None,
    shape: RowShape | None = None,
    row_count: int | None = None,
    microbatches: int = 1,
    plan=None,
    options=None,
    small: bool = False,
) -> Outcome:
    """Takes one SGD step over all the examples and says what came out."""
    method = METHODS[method_name]
    policy = policy_for(method, plan, small)
    batches = OrderedBatches(examples, batch_size=len(examples), mismatched=method.mismatched, seed=11)
    tokens, scored = batches.sizes(0)
    plan = plan or make_mesh(devices=jax.devices()[:1])
    multiple = plan.batch_size * microbatches
    if shape is None:
        # Rows that hold several examples, and are several.
        fixed = round_length(int(1.5 * max(tokens)))
        (program,) = choose_programs([(tokens, scored)], completions_of(method, examples), multiple, row_tokens=fixed)
    else:
        count = row_count or len(plan_rows(tokens, scored, shape).rows)
        program = RowProgram(-(-count // multiple) * multiple, shape)
    packer = Packer([program], multiple, column_names=column_names(method, ()))
    batch = packer(batches(0))

    optimizer = optax.sgd(1.0, momentum=0.0)  # its momentum is the gradient, which no parameter's size has rounded
    reference = references.frozen(policy) if method.needs_reference else references.none()
    trained, reference_variables = variables or variables_for(method, small)
    shardings = plan.tree_shardings(policy.axes(), policy.abstract())
    trained, reference_variables = jax.device_put((trained, reference_variables), (shardings, shardings))
    state, untrained = create_state(trained, full(), optimizer, reference, seed=0, method_state=method.state)
    step = make_train_step(
        policy,
        method,
        reference,
        full(),
        optimizer,
        options=method.resolve_options(options or OPTIONS.get(method_name, {})),
        microbatches=microbatches,
        pin_gradients=lambda gradients: jax.lax.with_sharding_constraint(gradients, shardings),
    )
    rows = plan.put_rows(batch.rows, batch.global_rows, batch.first_row)
    frozen = {"policy": untrained, "reference": reference_variables}
    state, output = jax.jit(step)(state, frozen, rows)
    ids = batch.rows.columns["example_id"]
    assert bool(output.finite)

    def by_example(sums):
        sums = np.asarray(sums)
        return {int(i): sums[r, e] for (r, e), i in np.ndenumerate(ids) if i >= 0}

    metrics = {name: float(total) / float(weight) for name, (total, weight) in output.metrics.items() if weight > 0}
    return Outcome(
        metrics.get("loss", 0.0),
        metrics,
        jax.device_get(state.opt_state[0].trace),
        by_example(output.policy_sums),
        by_example(output.reference_sums),
    )


def completions_of(method: Method, examples: ExampleSet) -> int:
    """Scored completions behind each prompt."""
    return examples.completions + method.mismatched


def assert_same(one: Outcome, other: Outcome, tolerance: float = 1e-5) -> None:
    """Equal losses, metrics, log-probabilities and gradients, relative to the largest value of each."""

    def close(a, b, what, scale=1e-2):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(a).max(), np.abs(b).max(), scale)
        assert np.abs(a - b).max() <= tolerance * scale, (what, np.abs(a - b).max() / scale)

    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics:
        close(one.metrics[name], other.metrics[name], name)
    assert one.policy_sums.keys() == other.policy_sums.keys()
    order = sorted(one.policy_sums)
    close([one.policy_sums[i] for i in order], [other.policy_sums[i] for i in order], "policy_sums")
    close([one.reference_sums[i] for i in order], [other.reference_sums[i] for i in order], "reference_sums")
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one.gradient))
    jax.tree.map(lambda a, b: close(a, b, "gradient", largest), one.gradient, other.gradient)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory, policy, variables):
    """A folder with a tiny model, its tokenizer, and preference pairs: what the command needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from jaxalign import save_pretrained

    folder = tmp_path_factory.mktemp("world")
    words = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(CONFIG.vocab_size - 3))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    save_pretrained(policy, variables[0], folder / "model", tokenizer=tokenizer)
    generator = np.random.default_rng(5)

    def text(longest):
        return " ".join(f"w{i}" for i in generator.integers(0, CONFIG.vocab_size - 3, generator.integers(2, longest)))

    rows = [{"prompt": f"w{i} {text(9)} ", "chosen": text(9), "rejected": text(9)} for i in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
