"""The shipped studies: their grids at both scales, their recipes, and the public facts they bring along."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest

from jaxalign.config import from_dict
from jaxalign.config_transport import load_study, read
from jaxalign.data.chat import ChatTemplate
from jaxalign.errors import ConfigError
from jaxalign.models.config_json import parse_config
from jaxalign.studies.cost.memory import sizes
from jaxalign.studies.study import Stage

VARIANTS = "configs/studies/dpo_variants.py"
REFERENCES = "configs/studies/reference_policies.py"


@pytest.fixture
def study(repository):
    def load(file, arg=""):
        return load_study(f"{repository / file}:{arg}")

    return load


@pytest.fixture(scope="module")
def published(repository):
    spec = importlib.util.spec_from_file_location("published", repository / "configs/studies/published.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(study, **labels):
    return [trial for trial in study.trials if labels.items() <= trial.labels.items()]


def settings(trial):
    assert isinstance(trial.model, Stage)
    return trial.model.config


def test_variants_is_a_full_grid(study):
    full = study(VARIANTS)
    assert len(full.trials) == 3 + 3 * 5 * 6 * 3
    assert len({tuple(trial.labels.items()) for trial in full.trials}) == len(full.trials)
    assert [t.model for t in rows(full, method="none")] == [
        "alignment-handbook/zephyr-7b-sft-full",
        "mistralai/Mistral-7B-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.2",
    ]
    assert {t.labels["size"] for t in rows(full, method="dpo")} == {1000, 5000, 10_000, 20_000, 40_000, 61_135}
    # A size counts pairs, whatever a method reads of them; the largest takes all there are.
    config = settings(rows(full, method="kto", size=5000, seed=2, start="base")[0])
    assert (config["data"]["size"], config["data"]["seed"]) == (5000, 2)
    assert settings(rows(full, method="kto", size=61_135)[0])["data"]["size"] is None
    assert not full.published  # none of the paper's tables could be read


def test_variants_follow_the_handbook(study, repository):
    """The same numbers as configs/paired.py for a model of this size, told apart so that a study stands alone."""
    for method in ("dpo", "ipo", "cpo"):
        config = settings(rows(study(VARIANTS), start="base", method=method, size=61_135)[0])
        recipe = read(f"{repository / 'configs/paired.py'}:{method},model=mistral_7b")
        assert config["optimizer"] == recipe["optimizer"]
        assert config["train"]["batch_size"] == recipe["train"]["batch_size"]
        for name in ("max_length", "max_prompt_length"):
            assert config["data"][name] == recipe["data"][name]
        assert {**recipe["model"], "chat_template": config["model"]["chat_template"]} == config["model"]


@pytest.mark.parametrize("file", [VARIANTS, REFERENCES])
def test_every_stage_of_both_scales_is_a_sound_configuration(file, study, tmp_path):
    for arg in ("", f"scale=tiny,world={tmp_path},seeds=1", "tensor=4,microbatches=2"):
        found = study(file, arg)
        for trial in found.trials:
            stages = [trial.model] if isinstance(trial.model, Stage) else []
            while stages:
                stage = stages.pop()
                stages += stage.inputs.values()
                tree = {section: dict(values) for section, values in stage.config.items()}
                for option in stage.inputs:
                    section, _, name = option.partition(".")
                    tree.setdefault(section, {})[name] = "/made/before"
                from_dict(tree)


def test_tiny_has_the_same_labels_and_method_options(study, tmp_path):
    full, tiny = study(VARIANTS), study(VARIANTS, f"scale=tiny,world={tmp_path}")
    for name in ("start", "method"):
        assert {t.labels[name] for t in tiny.trials} == {t.labels[name] for t in full.trials}
    assert len(tiny.trials) == 3 * 3 + 3 * 5 * 3 * 3
    assert tiny.prepare is not None
    for trial in rows(tiny, start="base", size=256):
        assert settings(trial)["method"]["beta"] == trial.labels["beta"]
    few = study(VARIANTS, f"scale=tiny,world={tmp_path},methods=kto+dpo,sizes=256+all,seeds=1")
    assert [t.labels["method"] for t in few.trials[3:7]] == ["kto", "kto", "dpo", "dpo"]


def test_wrong_subsets_are_told_with_what_there_is(study):
    with pytest.raises(ConfigError, match=r"methods: got 'ktoo', expected some of dpo\+ipo.* Did you mean 'kto'"):
        study(VARIANTS, "methods=ktoo")
    with pytest.raises(ConfigError, match="sizes: got '0', expected a number below 61135"):
        study(VARIANTS, "sizes=0+all")
    with pytest.raises(ConfigError, match=r"starts: got 'mistral', .* Did you mean 'mistral-7b'"):
        study(REFERENCES, "starts=mistral")
    with pytest.raises(ConfigError, match="part: got 'betas', expected one of all, beta"):
        study(REFERENCES, "part=betas")


def test_references_is_the_papers_grid(study):
    full = study(REFERENCES)
    aligned = [t for t in full.trials if t.labels["method"] == "dpo"]
    # beta 5 + 5 + 6; objectives 5 are in the first, 3 and 5 more; references 2 + 1 and 2, of 5 betas.
    assert len(aligned) == 16 + 8 + 25
    assert len(full.trials) == len(aligned) + 3 + 1
    parts = {part: study(REFERENCES, f"part={part}") for part in ("beta", "objectives", "references")}
    together = {tuple(t.labels.items()) for part in parts.values() for t in part.trials}
    assert together == {tuple(t.labels.items()) for t in full.trials}
    config = settings(rows(full, objective="likelihood", beta=0.01)[0])
    assert config["reference"] == {"mode": "cached", "source": "prior"}
    assert settings(rows(full, objective="probability", beta=100.0)[0])["reference"]["source"] == "none"
    train, optimizer = config["train"], config["optimizer"]
    assert (train["epochs"], train["batch_size"], train["eval_every"], train["best_metric"]) == (
        3,
        32,
        500,
        "eval_loss",
    )
    assert (optimizer["learning_rate"], optimizer["schedule"], optimizer["warmup_ratio"]) == (5e-7, "linear", 0.1)
    assert config["data"]["max_length"] == 2048
    # The DPO checkpoint that is a reference is the row of beta 0.01.
    checkpoint = rows(full, reference="dpo", beta=1.0)[0].model.inputs["reference.source"]
    assert checkpoint == rows(full, start="mistral-7b", objective="dpo", reference="self", beta=0.01)[0].model
    assert rows(full, start="qwen2-1.5b", beta=0.001)[0].model.inputs["model.path"].name == "sft"


def test_published_numbers_stand_beside_rows(study):
    full = study(REFERENCES)
    assert len(full.published) == 2 + 10 + 20 + 2 + 20 + 1 + 7 + 5
    for number in full.published:
        assert any(number.labels.items() <= t.labels.items() for t in full.trials), number
        assert number.source.startswith("arXiv 2407.13709v2, table ")
    best = {
        (n.labels["start"], n.labels["reference"]): n.value
        for n in sorted((n for n in full.published if n.value and "win rate" in n.metric), key=lambda n: n.value or 0)
        if n.labels.get("objective") == "dpo"
    }
    # The paper's table 5, which repeats the best of each reference.
    assert best[("mistral-7b", "self")] == 16.25
    assert best[("mistral-7b", "mistral-v0.2")] == 20.25
    assert best[("mistral-7b", "llama-3-70b")] == 15.37
    assert best[("tulu-2-7b", "self")] == 10.46
    assert best[("tulu-2-7b", "mistral-v0.2")] == 7.85
    assert best[("tulu-2-7b", "llama-3-70b")] == 11.17


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistralai/Mistral-7B-v0.1", 7.241732096),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7.241732096),
        ("allenai/tulu-2-7b", 6.738415616),
        ("meta-llama/Meta-Llama-3-70B-Instruct", 70.553706496),
        ("Qwen/Qwen2-1.5B", 1.543714304),
    ],
)
def test_architectures_have_the_published_number_of_parameters(name, billions, published):
    """As the safetensors files of the hub say."""
    config = parse_config(published.ARCHITECTURES[name], generation={}, where=name)
    assert sizes(config).total == round(billions * 1e9)


@pytest.mark.parametrize(
    ("name", "file", "may_differ"),
    [
        ("allenai/tulu-2-7b", "llama-2-7b-hf.json", {"max_position_embeddings", "torch_dtype"}),
        (
            "meta-llama/Meta-Llama-3-70B-Instruct",
            "llama-3.1-70b-instruct.json",
            {"max_position_embeddings", "eos_token_id"},
        ),
    ],
)
def test_architectures_are_those_of_config_files(name, file, may_differ, published, shared_data):
    """Of the nearest relative whose config.json is at hand: the same shape, with longer or shorter contexts."""
    theirs = json.loads((shared_data / "hf-configs" / file).read_text())
    ours = published.ARCHITECTURES[name]
    differ = {key for key, value in ours.items() if key in theirs and theirs[key] != value}
    assert differ <= may_differ


@pytest.mark.parametrize("name", ["zephyr", "tulu"])
def test_chat_formats(name, repository):
    """The text itself, and that the generation prompt is where the answer begins."""
    jinja2 = pytest.importorskip("jinja2")
    text = (repository / "configs/studies" / f"{name}.jinja").read_text()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)

    def apply(messages, *, chat_template, add_generation_prompt, **_):
        template = environment.from_string(chat_template)
        return template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"
        )

    template = ChatTemplate(SimpleNamespace(apply_chat_template=apply), text, name)
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Why?\n"}]
    said = template.render([*asked, {"role": "assistant", "content": "So."}], generation=False)
    end = {"zephyr": "</s>", "tulu": ""}[name]
    assert said == f"<s><|system|>\nBe kind.{end}\n<|user|>\n Why?\n{end}\n<|assistant|>\nSo.</s>\n"
    prompt = template.render(asked, generation=True)
    assert said == f"{prompt}So.</s>\n"
