"""Estimates of cost against closed forms, published parameter counts, counted tokens and the compiler's memory."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxalign.config import from_dict, resolve
from jaxalign.config_transport import load_study
from jaxalign.methods import METHODS
from jaxalign.models.adapters import Adapter
from jaxalign.models.config_json import parse_config
from jaxalign.models.policy import build_policy
from jaxalign.planning import executed, flops
from jaxalign.planning.changes import nearest_changes
from jaxalign.planning.memory import adapter_size, sizes, step_memory
from jaxalign.planning.targets import GIB, TARGETS, Target
from jaxalign.planning.workload import Workload
from jaxalign.studies import measures
from jaxalign.studies.cost import cost_lines, on_target, stage_cost
from jaxalign.studies.cost.measures import measure_tokens
from jaxalign.studies.cost.workload import workload_of
from jaxalign.studies.plan import PlannedStage, make_plan
from jaxalign.studies.study import Measure, PublishedData, Stage, Study, Trial, Work

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1000, "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PAIRS = PublishedData(examples={"train": 1000, "test": 100}, prompt=50, completion=30, size=10**6, source="made up")


def decoder(**changes):
    return parse_config({**LLAMA, **changes}, generation={}, where="here")


def stage(kind="train", inputs=None, key="a", **sections):
    tree = {
        "model": {"path": "some/model"}, "data": {"train": ["some/pairs"], "eval": ["some/pairs"]},
        "train": {"batch_size": 10, "epochs": 2.0},
    }  # fmt: skip
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    name = "reference" if kind == "reference" else "align"
    config = resolve(from_dict(tree))
    return PlannedStage(name=name, key=key, config=config, inputs=inputs or {}, rows=("r",), kind=kind, done=False)


def study(**changes):
    trial = Trial(labels={"method": "dpo"}, model=Stage(name="align", config={}))
    known = {"architectures": {"some/model": LLAMA}, "datasets": {"some/pairs": PAIRS}}
    return Study(
        **{"name": "s", "question": "?", "trials": (trial,), "measures": (), "headline": "", **known, **changes}
    )


def cost(planned, **changes):
    found = stage_cost(planned, {planned.key: planned}, study(**changes))
    assert found is not None
    return found


def test_operations_are_those_of_every_matrix_product():
    """Counted product by product, for a prompt of 50 and two answers of 30."""
    width, mlp, vocabulary, layers = 64, 160, 1000, 3
    tokens, scored = 50 + 2 * 30, 60
    projections = 2 * width * width + 2 * 2 * width * 32 // 2 * 1 + 3 * width * mlp  # query and output, key and value
    norms = 2 * width
    products = 2 * tokens * (layers * (projections + norms) + width)
    seen = 50 * 50 / 2 + 2 * (30 * 50 + 30 * 30 / 2)
    attention = 4 * 64 * layers * seen
    head = 2 * width * vocabulary * scored
    once = products + attention + head
    found = cost(stage(reference={"mode": "live"}))
    assert found.steps == 200
    # Three passes for the policy and one for the live reference; and the held-out pairs once, under both.
    assert found.flops == pytest.approx(2000 * 4 * once, rel=1e-12)
    assert found.evaluation == pytest.approx(100 * 2 * once, rel=1e-12)
    cached = stage(reference={"mode": "cached"})
    assert cost(cached).flops == pytest.approx(2000 * 3 * once, rel=1e-12)
    assert cost(dataclasses.replace(cached, kind="reference")).flops == pytest.approx(1100 * once, rel=1e-12)
    # Frozen weights take no gradient; attention has none, and the two gradients of its products as always. The factors
    # are trained: [64, 16] and [16, n] for each of the seven projections, or the other way round.
    factors = layers * 16 * (2 * (width + width) + 2 * (width + 32) + 3 * (width + mlp))
    low_rank = 2 * tokens * factors
    adapted = cost(stage(reference={"mode": "cached"}, adapter={"kind": "lora"}))
    assert adapted.flops == pytest.approx(2000 * (2 * products + 2 * head + 3 * attention + 3 * low_rank), rel=1e-12)
    assert adapted.evaluation == pytest.approx(100 * (once + low_rank), rel=1e-12)
    assert cost(stage(method={"name": "cpo"})).flops == pytest.approx(2000 * 3 * once, rel=1e-12)
    assert cost(stage(reference={"source": "columns"})).flops == pytest.approx(2000 * 3 * once, rel=1e-12)


def test_the_devices_do_what_is_needed_and_more():
    """Of the products with frozen weights both counts leave out the same; of attention neither leaves out anything."""
    full, lora = (stage(adapter={"kind": kind}, model={"remat": "none"}).config for kind in ("none", "lora"))
    work = Workload(examples=1, held_out=0, tokens=256, scored=64, attended=256**2 / 2, row=256, assumed=None)
    needed, done = (
        [count(config) for config in (full, lora)]
        for count in (
            lambda config: executed.needed(config, work, decoder(), None, 2, train=True),
            lambda config: executed.done(config, decoder(), None, 2, 256, 64, True, "tpu"),
        )
    )
    frozen = 2 * 2 * (256 * sizes(decoder()).blocks + 64 * 64 * 1000)
    low_rank = 3 * 2 * 2 * 256 * adapter_size(decoder(), Adapter())
    assert needed[0] - needed[1] == pytest.approx(frozen - low_rank, rel=1e-9)
    assert done[0] - done[1] == pytest.approx(frozen - low_rank, rel=1e-9)
    assert all(more > least for more, least in zip(done, needed, strict=True))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"mode": "live"}, 0.0),
        ({"mode": "moving"}, 1.0),
        ({"mode": "moving", "dtype": "bfloat16"}, 0.5),
        ({"mode": "cached"}, 0.0),
    ],
)
def test_under_adapters_a_reference_is_at_most_a_copy_of_the_factors(settings, share):
    found = cost(stage(reference=settings, adapter={"kind": "lora"}))
    place = on_target(found, Target("pod", 4, 1e18, 1e12), mfu=0.4)
    assert place.memory.reference == pytest.approx(share * 4 * adapter_size(decoder(), Adapter(), fsdp=4))
    # Another model, or one in int8, is a copy of its own; and so is any without adapters.
    if settings == {"mode": "live"}:
        for sections in ({}, {"adapter": {"kind": "lora"}}):
            more = {"source": "some/model"} if sections else {}
            other = cost(stage(reference={**settings, **more}, **sections))
            whole = on_target(other, Target("pod", 4, 1e18, 1e12), mfu=0.4).memory.reference
            assert whole == pytest.approx(sizes(decoder()).total)


def test_a_smaller_vocabulary_saves_only_at_scored_tokens():
    work = Workload(examples=1, held_out=0, tokens=100, scored=10, attended=0, row=128, assumed=None)
    one, other = (flops.forward(decoder(vocab_size=v), work.tokens, work.scored, 0) for v in (1000, 2000))
    assert other - one == 2 * 64 * 1000 * 10


@pytest.mark.parametrize(
    ("method", "examples", "tokens"),
    [("dpo", 1000, 110), ("kto", 2000, 110), ("bco", 2000, 80), ("sft", 1000, 80)],
)
def test_each_layout_reads_its_tokens(method, examples, tokens):
    found = cost(stage(method={"name": method}))
    assert (found.work.examples, found.work.tokens) == (examples, tokens)
    assert found.work.assumed == "some/pairs: made up"
    # A size counts pairs, also where each is read as two labelled answers.
    assert cost(stage(method={"name": method}, data={"size": 100})).work.examples == examples // 10


def test_tokens_are_counted_where_data_and_tokenizer_are_at_hand(tmp_path):
    from jaxalign.build import check_data
    from jaxalign.data.synthetic import World, write_world
    from jaxalign.quickstart.settings import ARCHITECTURE
    from jaxalign.quickstart.worlds import write_architecture

    write_world(tmp_path / "w", World(documents=50, demonstrations=50, pairs=40, eval_pairs=8, questions=8, seed=0))
    write_architecture(tmp_path / "start", ARCHITECTURE, tmp_path / "w" / "tokenizer")
    model = {"config": str(tmp_path / "start" / "config.json"), "tokenizer": str(tmp_path / "w" / "tokenizer")}
    data = {"train": [str(tmp_path / "w" / "pairs.jsonl")], "eval": [str(tmp_path / "w" / "eval_pairs.jsonl")]}
    base = stage(model={**model, "path": None}, data=data, method={"name": "sft"}, key="base")
    align = stage(inputs={"model.path": "base"}, model={"path": "/not/made/yet"}, data=data)
    found = workload_of(align, {"base": base, "a": align}, {})
    assert found is not None
    config = dataclasses.replace(align.config, model=base.config.model)
    examples = check_data(config).train
    assert (found.examples, found.held_out, found.assumed) == (len(examples), 8, None)
    assert found.tokens == pytest.approx(examples.row_tokens.mean())
    assert found.scored == pytest.approx(examples.scored_tokens.mean())
    assert found.row >= examples.row_tokens.max()
    # Other options of the same method and layout do not read the files again; fewer pairs are fewer.
    fewer = stage(inputs={"model.path": "base"}, model={"path": "/n"}, data={**data, "size": 5}, method={"name": "ipo"})
    again = workload_of(fewer, {"base": base, "a": fewer}, {})
    assert again == dataclasses.replace(found, examples=5)
    cost_of = stage_cost(align, {"base": base, "a": align}, study(architectures={}, datasets={}))
    assert cost_of is not None
    assert cost_of.decoder.width == ARCHITECTURE["hidden_size"]


def test_memory_falls_with_devices_and_rises_with_what_is_kept():
    work = {"rows": 8, "row": 1024, "scored": 800.0}
    one, eight = (step_memory(stage().config, decoder(), mesh=(1, n, 1), reference=decoder(), **work) for n in (1, 8))
    count = sizes(decoder()).total
    for part, size in (("weights", 4), ("optimizer", 8), ("reference", 4)):
        assert getattr(one, part) == pytest.approx(size * count)
        assert getattr(eight, part) == pytest.approx(size * count / 8)
    assert eight.kept == pytest.approx(one.kept / 8)
    kept = [
        step_memory(stage(model={"remat": remat}).config, decoder(), mesh=(1, 8, 1), reference=None, **work).total
        for remat in ("full", "dots", "none")
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    half = stage(model={"remat": "full", "param_dtype": "bfloat16"}, optimizer={"name": "lion"}).config
    small = step_memory(half, decoder(), mesh=(1, 8, 1), reference=None, **work)
    assert small.weights == pytest.approx(2 * count / 8)
    assert small.optimizer == pytest.approx(4 * count / 8)


def test_the_nearest_change_is_the_one_that_costs_least():
    # Reference and gradients fill a device that would hold the rest.
    planned = stage(model={"remat": "none"}, train={"batch_size": 16}, reference={"mode": "live"})
    found = cost(planned)
    live = on_target(found, Target("one", 1, 1e18, 1e12), mfu=0.4).memory.total
    without = live - 4 * sizes(found.decoder).total

    def fits_in(memory):
        def fits(config):
            against = found.decoder if config.reference.mode == "live" else None
            changed = dataclasses.replace(found, stage=dataclasses.replace(planned, config=config), live=against)
            return on_target(changed, Target("one", 1, memory, 1e12), mfu=0.4).fits

        return fits

    assert nearest_changes(planned.config, fits_in(without)) == ["reference.mode=cached"]
    assert nearest_changes(planned.config, fits_in(without - 1)) == ["model.remat=dots"]
    assert nearest_changes(planned.config, fits_in(0)) is None
    lines = cost_lines([planned], study(), targets=[Target("one", 1, without, 1e3)])
    assert any("align does not fit one: it would with reference.mode=cached." in line for line in lines)


def test_the_text_tells_totals_padding_downloads_and_what_is_unknown():
    unknown = stage(model={"path": "nobody/knows"}, key="u")
    target = Target("pod", 64, 16 * GIB, 1e9)
    asked = (measures.generations("some/pairs", count=10, max_new_tokens=50), Measure(name="mine", run=lambda s: None))
    lines = cost_lines([stage(), stage(key="b"), unknown], study(measures=asked), targets=[target])
    text = "\n".join(lines)
    assert "Estimated cost of 3 stages (0 done already), at 40% of" in text
    assert "2 x  align  some/model" in text  # two stages with equal numbers are one line
    assert "Not estimated: 1 x align of nobody/knows on some/pairs" in text
    assert "rows a step is padding" in text
    assert "Measures of 1 rows" in text
    assert "generations: 10 x 200 tokens a prompt, up to 50 tokens an answer; mine: not estimated." in text
    assert "Tokens are assumed, not counted, of some/pairs: made up" in text
    assert "model some/model: 0.0 GB" in text
    assert "model nobody/knows: size unknown" in text
    assert "data some/pairs: 0.00 GB" in text
    done = dataclasses.replace(stage(), done=True)
    assert cost_lines([done], study(), targets=TARGETS)[0].startswith("Estimated cost of 0 stages (1 done")


def test_what_a_measure_tells_of_its_work_is_what_it_costs(tmp_path):
    def tokens(measure):
        return measure_tokens(measure.work, {"some/pairs": PAIRS})

    # Every pair of the split once under each of two models, a pair being a prompt of 50 and two answers of 30.
    section = {"eval": ["some/pairs"], "eval_split": "test"}
    for measure in (
        measures.token_shift(section),
        measures.held_out({"data": section, "method": {"name": "dpo"}}, always=True),
    ):
        assert tokens(measure)[:3] == (100 * 2 * 110, 0, 0)
    assert tokens(measures.held_out({"data": section, "method": {"name": "cpo"}}, always=True)).read == 100 * 110
    assert tokens(measures.token_shift(section, count=7)).read == 7 * 2 * 110
    assert tokens(measures.held_out()) == (0, 0, 0, "measured while training")
    # Of a file its own rows are counted, whatever it is called.
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a b c d e f g h i j k l"}\n' * 6)
    assert tokens(measures.token_shift(str(file))).read == pytest.approx(2 * file.stat().st_size / 4)
    found = tokens(measures.generations(str(file), count=256, max_new_tokens=50, batch_size=4))
    assert (found.written, found.steps) == (6 * 50, 2 * 50)
    assert tokens(measures.generations("some/pairs", count=None, against=None)).written == 1000 * 400
    assert tokens(measures.suite("study1", name="mine", batch_size=20)).steps == 100 * 150
    for unknown in (measures.suite("quick"), measures.suite("study1", limit=3), measures.token_shift("no/facts")):
        assert tokens(unknown) is None


def test_generating_takes_at_least_the_reading_of_all_weights():
    measure = Measure(name="m", run=lambda s: None, work=Work(why="w", items=10, written=100, together=4))
    planned = [stage(key=key) for key in "a"]
    target = Target("pod", 64, 16 * GIB, 1e9, bandwidth=sizes(decoder()).total * 2 / 3600)  # all weights in an hour
    text = "\n".join(cost_lines(planned, study(measures=(measure,)), targets=[target]))
    assert "and at least 300.0 h on pod of generating" in text


def test_hours_follow_from_operations_and_padding():
    # Batches that fill the rows of a device: the time is operations over speed.
    found = cost(stage(train={"batch_size": 1000}))
    place = on_target(found, Target("one", 1, 1e18, 1e12), mfu=0.5)
    assert place.full == pytest.approx(0.93, abs=0.01)
    assert place.hours == pytest.approx((found.flops + found.evaluation) / 0.5e12 / 3600, rel=0.01)
    # One row for sixty-four devices: sixty-three of them wait.
    lonely = on_target(cost(stage(train={"batch_size": 5})), Target("pod", 64, 1e18, 1e12), mfu=0.5)
    assert lonely.rows == 64
    assert lonely.full < 1 / 64


@pytest.mark.slow
def test_memory_is_what_the_compiler_takes():
    """On eight simulated devices: arguments and temporaries of the real step, to a fifth."""
    from jaxalign.training import references
    from jaxalign.training.mesh import make_mesh
    from jaxalign.training.optimizer import make_optimizer
    from jaxalign.training.state import create_state, state_shardings
    from jaxalign.training.step import make_train_step
    from jaxalign.training.trainable import full
    from jaxalign.types import Rows

    if jax.device_count() < 8:
        pytest.skip("needs eight simulated devices")
    rows, row, scored = 8, 256, 200
    model = decoder(vocab_size=4000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8)
    plan, method = make_mesh(1, 8, 1, devices=jax.devices()[:8]), METHODS["dpo"]
    policy = build_policy(model, dtype="float32", constrain=plan.constrain, remat="full")
    optimizer, _ = make_optimizer("adamw", 1e-6)
    reference = references.frozen(policy)
    shapes, untrained = jax.eval_shape(
        lambda v: create_state(v, full(), optimizer, reference, 0, method.state), policy.abstract()
    )
    weights = plan.tree_shardings(policy.axes(), policy.abstract())
    shardings = state_shardings(shapes, weights, plan.replicated)

    def placed(tree, where):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)

    def split(shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=plan.rows_sharding())

    columns = {"example_id": split((rows, 4))}
    places = ("tokens", "positions", "own_start", "prefix_start", "prefix_end")
    batch = Rows(
        **{name: split((rows, row)) for name in places},
        **{name: split((rows, scored)) for name in ("score_source", "score_target", "score_slot")},
        example_mask=split((rows, 4), np.bool_),
        columns=columns,
        completions=2,
    )
    step = make_train_step(
        policy, method, reference, full(), optimizer, options=method.resolve_options({}),
        pin_gradients=lambda g: jax.lax.with_sharding_constraint(g, shardings.trainable),
    )  # fmt: skip
    frozen = {"policy": untrained, "reference": placed(policy.abstract(), weights)}
    with jax.set_mesh(plan.mesh):
        program = jax.jit(step, donate_argnums=0).lower(placed(shapes, shardings), frozen, batch).compile()
    analysis = program.memory_analysis()
    real = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    config = stage(model={"remat": "full", "dtype": "float32"}, train={"batch_size": 16})
    estimate = step_memory(config.config, model, rows=rows, row=row, scored=scored, mesh=(1, 8, 1), reference=model)
    assert estimate.total == pytest.approx(real, rel=0.2)


def test_fills_and_runs_of_a_real_plan_are_priced(repository, tmp_path):
    """The largest study, as the command plans it."""
    study = load_study(str(repository / "configs/studies/reference_policies.py") + ":part=references")
    plan = make_plan(study, tmp_path)
    costs = {key: stage_cost(each, plan.stages, study) for key, each in plan.stages.items()}
    assert all(costs.values())
    seventy = [c for c in costs.values() if c and c.decoder.layers == 80]
    assert len(seventy) == 2
    assert all(c.stage.kind == "reference" and not c.steps for c in seventy)
    v5e = next(target for target in TARGETS if target.name == "v5e-64")
    # 70.6 billion float32 weights over 64 chips.
    assert on_target(seventy[0], v5e, mfu=0.4).memory.weights == pytest.approx(70.6e9 * 4 / 64, rel=1e-3)
    runs = [c for c in costs.values() if c and c.stage.name == "align"]
    assert all(c.live is None and c.steps == 5700 for c in runs)
    json.dumps(cost_lines(plan.stages, study))
