"""Plans: the real step without values, what does not fit and what would, and the verb."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from jaxalign.build import ahead
from jaxalign.build.abstract import RowSizes
from jaxalign.build.data import check_data
from jaxalign.build.plan import plan
from jaxalign.build.plan_load import load_of
from jaxalign.build.plan_text import plan_lines
from jaxalign.build.plan_work import Work, models
from jaxalign.build.row_layout import scoring_layout
from jaxalign.cli import main
from jaxalign.config import from_dict, resolve
from jaxalign.errors import ConfigError
from jaxalign.models.adapters import Adapter
from jaxalign.models.config_json import parse_config
from jaxalign.planning.changes import CHANGES, candidates, changed, mesh_changes
from jaxalign.planning.memory import adapter_size, reference_bytes, sizes, step_memory
from jaxalign.planning.targets import GIB, target
from jaxalign.training.mesh import make_mesh

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SEVEN = {"model": {"path": "mistralai/Mistral-7B-v0.1", "remat": "full"}, "data": {"train": ["x"]}}
NOTHING = ahead.Arguments(0.0, 0.0, 0.0, 0.0)


def seven(**sections):
    tree = {**SEVEN, "reference": {"mode": "cached"}, "train": {"batch_size": 64}}
    return from_dict({**tree, **{name: {**tree.get(name, {}), **values} for name, values in sections.items()}})


def shapes_only(config, name, **options):
    return plan(config, target(name), tokens=options.pop("tokens", 2048), compiling=False, **options)


@pytest.fixture
def architecture(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    return file


def test_seven_billion_weights_with_adam_fit_sixteen_chips_and_not_eight():
    found = shapes_only(seven(), "v5e:4x4", examples=60_000, price=1.0)
    assert found.fits
    assert found.advice is None
    assert found.mesh == {"data": 1, "fsdp": 16, "tensor": 1}
    weights = 7_241_732_096
    assert found.estimate.weights == pytest.approx(weights * 4 / 16)
    assert found.estimate.optimizer == pytest.approx(weights * 8 / 16)
    # What the compiler took (docs/planning.md), within a tenth.
    assert found.estimate.total == pytest.approx(11.47 * GIB, rel=0.1)
    # Six operations for each weight and token, and attention.
    assert found.model_flops == pytest.approx(6 * weights * 64 * 2048, rel=0.08)
    assert found.device_flops * 16 > found.model_flops
    assert found.steps == 938
    cost = found.as_dict()["cost"]
    assert cost == pytest.approx(938 * found.step_seconds / 3600 * 16)
    eight = shapes_only(seven(), "v5e:2x4")
    assert not eight.fits
    assert eight.advice is not None
    assert eight.advice.estimated <= 15.75 * GIB
    assert eight.larger == "v5e:4x4"
    text = "\n".join(plan_lines(eight))
    assert "does not fit" in text
    assert "or, as it is, on v5e:4x4" in text


def test_a_live_reference_is_cached_before_anything_else_is_changed():
    live = shapes_only(seven(reference={"mode": "live"}), "v5e:4x4")
    without = shapes_only(seven(), "v5e:4x4")
    assert live.estimate.total - without.estimate.total == pytest.approx(live.estimate.reference, rel=0.1)
    tight = dataclasses.replace(target("v5e:4x4"), memory=without.estimate.total * 1.01)
    found = plan(seven(reference={"mode": "live"}), tight, tokens=2048, compiling=False)
    assert found.advice is not None
    assert found.advice.changes == ("reference.mode=cached",)


def test_changes_come_in_the_order_of_their_harm_and_never_contradict():
    config = resolve(seven(reference={"mode": "live"}, model={"remat": "none"}))
    harms = []
    for chosen in candidates(config, CHANGES):
        harms.append(sum(change.harm for change in chosen))
        fields = [(section, name) for change in chosen for section, of in change.values.items() for name in of]
        assert len(fields) == len(set(fields))
        assert changed(config, chosen) != config
    assert harms == sorted(harms)
    full = resolve(seven())
    assert all("remat" not in change.name for chosen in candidates(full, CHANGES) for change in chosen)


def test_nothing_is_advised_that_could_not_start():
    # tdpo1 compares whole distributions, which no cache holds; three key heads cannot be shared by two devices.
    tdpo = resolve(seven(method={"name": "tdpo1"}, reference={"mode": "live"}))
    sets = list(candidates(tdpo, CHANGES))
    assert sets
    assert all("reference.mode=cached" not in change.name for chosen in sets for change in chosen)
    odd = parse_config(
        {**TINY, "num_attention_heads": 6, "hidden_size": 96, "num_key_value_heads": 3}, generation={}, where="here"
    )
    copies = seven(mesh={"data": 2, "fsdp": 4, "tensor": 1})
    assert [change.name for change in mesh_changes(copies, 8, odd)] == ["mesh.data=1 mesh.fsdp=-1"]


@pytest.mark.parametrize("tokens", [2048, 16_384, 40_960])
@pytest.mark.parametrize("mesh", [{}, {"data": 2}, {"data": 4, "fsdp": -1, "tensor": 2}, {"data": -1, "fsdp": 4}])
def test_what_is_advised_fits_as_it_is_printed(mesh, tokens):
    found = shapes_only(seven(mesh=mesh, train={"batch_size": 16}), "v5e:8x8", tokens=tokens)
    assert found.advice is not None or found.fits
    if found.advice is None:
        return
    printed = [word.split("=") for change in found.advice.changes for word in change.split()]
    sections = {"mesh": mesh, "train": {"batch_size": 16}}
    for name, value in printed:
        section, field = name.split(".")
        words = value if section in ("model", "reference", "adapter") else int(value)
        sections[section] = {**sections.get(section, {}), field: words}
    again = shapes_only(seven(**sections), "v5e:8x8", tokens=tokens, searching=False)
    assert again.fits
    assert again.estimate.total == pytest.approx(found.advice.estimated)


def test_int8_weights_are_planned_as_they_run():
    """Under adapters a copy beside the frozen weights; in the reference pass in place of them."""
    int8 = {"quantization": "int8"}
    lora = {"adapter": {"kind": "lora"}}
    live = shapes_only(seven(reference={"mode": "live", **int8}, **lora), "v5e:4x4")
    shared = shapes_only(seven(reference={"mode": "live"}, **lora), "v5e:4x4")
    assert shared.estimate.reference == 0
    assert live.estimate.reference == pytest.approx((6.98e9 + 2 * 32000 * 4096 * 4) / 16, rel=0.01)
    whole, narrow = (
        shapes_only(seven(reference=settings), "v5e:4x4", run_pass="reference").estimate for settings in ({}, int8)
    )
    assert narrow.weights == pytest.approx(live.estimate.reference)
    assert narrow.total < whole.total / 2
    pytest.importorskip("qwix")
    config, decoder = (
        resolve(
            from_dict(
                {"model": {"path": "some/model"}, "data": {"train": ["x"]}, "reference": {"mode": "cached", **int8}}
            )
        ),
        parse_config(TINY, generation={}, where="here"),
    )
    program = ahead.scoring_program(
        config, decoder, RowSizes(8, 32, 16, 2, 2), make_mesh(1, 1, 1, devices=jax.devices()[:1])
    )
    assert program.arguments.reference == pytest.approx(reference_bytes(config, decoder), rel=0.05)


def test_under_adapters_a_moving_reference_is_a_copy_of_the_factors():
    lora = {"adapter": {"kind": "lora", "rank": 8}}
    live, moving = (
        shapes_only(seven(reference={"mode": mode}, **lora), "v5e:4x4").estimate for mode in ("live", "moving")
    )
    assert live.reference == 0
    # 32 layers of float32; the factor that meets the width is split over 16 devices, the other is whole on each.
    width, keys, mlp = 4096, 1024, 14336
    split, whole = 7 * width, width + 2 * keys + width + 2 * mlp + mlp
    assert moving.reference == 32 * 8 * 4 * (split / 16 + whole)
    assert moving.total - live.total == pytest.approx(moving.reference)


def test_the_rows_of_the_reference_pass_are_those_of_the_model_that_scores(world, configure):
    """Where nothing else differs a wider model takes longer rows; the tokens are the policy's, and it is said."""
    config = resolve(configure(reference__source="mistralai/Mistral-7B-v0.1", reference__mode="cached"))
    work = Work(config, target("v5e:2x2"), "reference", load_of(config), *models(config, "reference"))
    data = check_data(config)
    sets = [each for each in (data.train, data.held_out) if each is not None]
    expected = {
        width: scoring_layout(sets, False, batch_size=work.batch, multiple=4, width=width)[0].tokens
        for width in (4096, 32)
    }
    assert work.rows.tokens == expected[4096] > expected[32]
    assert "counted with the policy's tokenizer, not with that of mistralai/Mistral-7B-v0.1" in work.load.told
    assert "tokenizer" not in load_of(resolve(configure())).told


def test_attention_counts_by_its_form():
    auto, dense = (shapes_only(seven(model={"attention": form}), "v5e:4x4") for form in ("auto", "dense"))
    scores = 4 * 32 * 2048**2 * 4  # four rows a device
    assert dense.estimate.blocks - auto.estimate.blocks >= 2 * scores
    assert dense.device_flops > auto.device_flops


def test_gpus_are_planned_by_shapes_and_say_so():
    found = shapes_only(seven(), "8xH100")
    assert found.fits
    assert found.compiled is None
    text = "\n".join(plan_lines(found))
    assert "GPUs are planned by shapes alone" in text
    assert "traffic between devices is estimated from shapes" in text


def test_the_reference_pass_holds_the_reference_alone():
    config = seven(model={"path": "meta-llama/Meta-Llama-3-70B-Instruct"})
    found = shapes_only(config, "v5e:8x8", run_pass="reference", examples=1000)
    assert found.fits
    assert (found.estimate.optimizer, found.estimate.kept) == (0, 0)
    assert found.estimate.weights == pytest.approx(70.55e9 * 4 / 64, rel=1e-3)
    assert found.model_flops == pytest.approx(2 * 70.55e9 * found.rows.rows * 2048, rel=0.05)
    with pytest.raises(ConfigError, match="computes none"):
        shapes_only(from_dict({**SEVEN, "method": {"name": "simpo"}}), "v5e:8x8", run_pass="reference")


def test_what_a_run_reads_follows_from_data_or_from_numbers():
    config = resolve(seven(data={"max_length": 512}))
    assert load_of(config).longest == 1024  # a pair: with a short prompt, both answers may be as long
    assert load_of(config, tokens=600).work.row == 608
    assert "training cuts at data.max_length 512: 2 completions have 1024" in load_of(config, tokens=2048).told
    unlimited = resolve(seven(data={"max_length": None}))
    assert (load_of(unlimited).longest, load_of(unlimited, positions=512).longest) == (2048, 1024)
    sft = resolve(from_dict({**SEVEN, "method": {"name": "sft"}, "data": {"train": ["x"], "loss_on": "all"}}))
    assert load_of(sft).longest == 1024
    assert load_of(sft).work.scored == 1024
    short = load_of(config, tokens=1000, mean_tokens=100)
    decoder = parse_config(TINY, generation={}, where="here")
    assert short.sizes(config, decoder, 8).rows == 8  # ten examples a row
    assert load_of(config, tokens=1000).sizes(config, decoder, 8, parts=4).rows == 64
    with pytest.raises(ConfigError, match="--mean-tokens"):
        load_of(config, tokens=100, mean_tokens=200)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("method", ["dpo", "kto", "tdpo2", "weighted_dpo", "process_reward_model", "spo"])
def test_the_step_without_values_is_traced_with_every_column(method):
    decoder = parse_config(TINY, generation={}, where="here")
    tree = {"model": {"path": "some/model"}, "data": {"train": ["x"]}, "method": {"name": method}}
    config = resolve(from_dict(tree))
    mesh = make_mesh(2, 4, 1, devices=jax.devices()[:8])
    completions = load_of(config).completions
    program = ahead.train_program(config, decoder, decoder, RowSizes(8, 32, 16, 2, completions), mesh, 10)
    with jax.set_mesh(mesh.mesh):
        state, told = jax.eval_shape(program.function, *program.values)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(lambda leaf: leaf.shape, program.values[0])
    assert "loss" in told.metrics
    if method == "dpo":  # two copies of the float32 weights, each split in four
        assert program.arguments.parameters == pytest.approx(sizes(decoder).total, rel=0.01)
    assert program.arguments.optimizer == pytest.approx(2 * program.arguments.parameters, rel=0.01)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("mode", ["live", "moving"])
def test_under_adapters_the_frozen_weights_are_the_reference(mode):
    decoder = parse_config(TINY, generation={}, where="here")
    tree = {"model": {"path": "some/model"}, "data": {"train": ["x"]}, "adapter": {"kind": "lora", "rank": 4}}
    config = resolve(from_dict({**tree, "reference": {"mode": mode}}))
    mesh = make_mesh(1, 8, 1, devices=jax.devices()[:8])
    program = ahead.train_program(config, decoder, decoder, RowSizes(8, 32, 16, 2, 2), mesh, 10)
    with jax.set_mesh(mesh.mesh):
        jax.eval_shape(program.function, *program.values)
    given = program.arguments
    factors = adapter_size(decoder, Adapter(rank=4))
    assert sizes(decoder).total * 4 / 8 < given.parameters < sizes(decoder).total * 4 / 8 + factors * 4
    assert given.optimizer <= 2 * factors * 4 + 64
    found = step_memory(config, decoder, rows=8, row=32, scored=16, mesh=(1, 8, 1), reference=decoder)
    assert given.reference == pytest.approx(found.reference)
    assert (found.reference == 0) == (mode == "live")
    assert found.weights == pytest.approx(given.parameters, rel=0.02)
    assert found.optimizer == pytest.approx(given.optimizer, rel=0.02)


def test_the_verb_prints_and_writes(architecture, tmp_path, capsys):
    out = tmp_path / "plan.json"
    command = ["plan", "--config.method.name=dpo", f"--config={_config(tmp_path, architecture)}", "--no-compile"]
    assert main([*command, "--target=8xH100,v5e:2x2", "--tokens=64", "--examples=100", f"--out={out}"]) == 0
    text = capsys.readouterr().out
    assert "8xH100: train step of" in text
    assert "v5e:2x2: train step of" in text
    first, second = json.loads(out.read_text())
    assert (first["target"]["name"], second["target"]["name"]) == ("8xH100", "v5e:2x2")
    assert first["fits"]
    assert first["cost"] is None
    assert first["run_seconds"] > 0


def test_the_verb_tells_all_that_is_wrong(architecture, tmp_path, capsys):
    config = _config(tmp_path, architecture)
    command = ["plan", f"--config={config}", "--target=v5:8x8", "--tokens=0", "--no-such", "--config.train.stepz=3"]
    assert main(command) == 2
    said = capsys.readouterr().err
    for part in ("Did you mean 'v5e:8x8'?", "--tokens: got 0", "unknown flag --no-such", "Did you mean 'train.steps'?"):
        assert part in said
    assert main(["plan"]) == 2
    assert "--config: missing" in capsys.readouterr().err
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps({"model": {"path": "nobody/knows"}}))
    assert main(["plan", f"--config={unknown}", "--no-compile"]) == 2
    assert "whose architecture is not known here" in capsys.readouterr().err


def test_without_libtpu_it_plans_from_shapes_and_says_what_to_install(architecture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["plan", f"--config={_config(tmp_path, architecture)}", "--target=v5e:2x2,8xH100", "--tokens=64"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "pip install 'jaxalign[plan]'" in said.err
    assert "v5e:2x2: train step" in said.out
    assert "8xH100: train step" in said.out


def test_a_program_that_cannot_be_read_has_its_memory_but_no_traffic(monkeypatch):
    """libtpu may be newer than jaxlib. Memory is known all the same; traffic is estimated, and it is said why."""

    def unreadable(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmore of it")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    compiled = ahead.compile_program(ahead.Program(jax.jit(jnp.sin), (jnp.ones(8),), make_mesh(), NOTHING))
    assert compiled.fits
    assert compiled.total > 0
    assert compiled.sent is None
    assert "its traffic is not known (INTERNAL: RET_CHECK failure)" in compiled.warnings[0]


@pytest.mark.plan
def test_a_small_step_compiles_for_a_slice(architecture, tmp_path, for_tpus):
    out = tmp_path / "plan.json"
    command = ["plan", "--target=v5e:2x2", "--tokens=64", f"--out={out}", "--config.method.name=dpo"]
    assert "fits" in for_tpus("-m", "jaxalign", *command, f"--config={_config(tmp_path, architecture)}")
    (found,) = json.loads(out.read_text())
    assert found["fits"]
    # Layouts pad small arrays.
    assert found["compiled"]["arguments"] >= sum(found["arguments"].values()) > 0
    assert found["compiled"]["sent"]["fsdp"]["all-gather"] > 0


def _config(tmp_path, architecture):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"model": {"config": str(architecture)}, "method": {"name": "dpo"}}))
    return file
