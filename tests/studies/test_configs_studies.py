"""The shipped studies: their grids at both scales, their recipes, and the public facts they bring along."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest

from jaxalign import build
from jaxalign.config import from_dict
from jaxalign.config_transport import load_study, read
from jaxalign.data.chat import ChatTemplate
from jaxalign.errors import ConfigError
from jaxalign.evaluation.degeneration import MOST_UNENDED
from jaxalign.evaluation.outcome import Outcome
from jaxalign.models.config_json import parse_config
from jaxalign.planning.memory import sizes
from jaxalign.studies.study import Stage, Subject

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


def problems_of(study, file, arg):
    with pytest.raises(ConfigError) as failure:
        study(file, arg)
    return failure.value.problems


def test_all_arguments_are_checked_at_once(study):
    found = problems_of(study, VARIANTS, "methods=ktoo,sizes=0+x,seeds=-1,tensor=0,judge=http://localhost:1")
    assert [problem.partition(":")[0] for problem in found] == ["methods", "sizes", "sizes", "seeds", "tensor", "judge"]
    assert "changes nothing without mt_bench=" in found[-1]
    found = problems_of(study, REFERENCES, "starts=x,seeds=-3,microbatches=-1,weights=w.csv,judge_prompt=p.txt")
    names = [problem.partition(":")[0] for problem in found]
    assert names == ["starts", "seeds", "microbatches", "judge_prompt", "weights"]
    found = problems_of(study, REFERENCES, "scale=tiny,alpaca_eval=a.json,tensor=2,starts=mistral-7b")
    assert [problem.partition(":")[0] for problem in found] == ["starts", "alpaca_eval", "tensor"]
    assert "which scale=tiny does not read" in found[-1]


def test_a_judge_needs_a_prompt_and_outputs_alone_are_no_headline(study, tmp_path):
    data = tmp_path / "alpaca_eval_gpt4_baseline.json"
    data.write_text("[]")
    judge = "judge=http://localhost:1"
    assert "judge_prompt: missing" in problems_of(study, REFERENCES, f"alpaca_eval={data},{judge}")[0]

    def headline(arg):
        return study(REFERENCES, arg).headline

    assert headline("") == headline(f"alpaca_eval={data}") == "held_out/ranking/accuracy"
    assert headline(f"alpaca_eval={data},{judge},judge_prompt=p.txt") == "alpaca_eval/win_rate"
    controlled = "alpaca_eval/length_controlled_win_rate"
    assert headline(f"alpaca_eval={data},{judge},judge_prompt=p.txt,weights=w.csv") == controlled
    (tmp_path / "df_gamed.csv").write_text("")
    (tmp_path / "alpaca_eval_clf.txt").write_text("")
    assert headline(f"alpaca_eval={tmp_path},{judge}") == controlled


@pytest.mark.parametrize("file", [VARIANTS, REFERENCES])
def test_models_are_measured_in_the_format_in_which_they_are_aligned(file, study, tmp_path, monkeypatch):
    """As they are on the hub, where the aligned ones export their format; and on the same pairs by the same method."""
    full = study(file)
    aligned = {}
    for trial in full.trials:
        if isinstance(trial.model, Stage) and "path" in trial.model.config["model"]:
            model = trial.model.config["model"]
            aligned[model["path"]] = model.get("chat_template")
    starts = [t.model for t in full.trials if isinstance(t.model, str)]
    asked = []

    def generations(model, *_, **options):
        asked.append((options["chat_template"], options["most_unended"]))
        return Outcome(metrics={})

    def check_data(config):
        asked.append((config.model.chat_template, config.method.name))
        raise InterruptedError

    monkeypatch.setattr(build, "generations", generations)
    monkeypatch.setattr(build, "check_data", check_data)
    kinds = {measure.name: measure for measure in full.measures}
    for start in (*starts, str(tmp_path)):
        subject = Subject(model=start, out=tmp_path)
        kinds["generations"].run(subject)
        template, unended = asked.pop()
        assert template == aligned.get(start)
        assert unended == (1.0 if start == "mistralai/Mistral-7B-v0.1" else MOST_UNENDED)
        with pytest.raises(InterruptedError):
            kinds["held_out"].run(subject)
        assert asked.pop() == (aligned.get(start), "dpo")
    for measure in full.measures:
        json.dumps(dict(measure.settings))
        assert measure.name == "study1" or measure.settings["formats"]
    held_out = dict(kinds["held_out"].settings)
    assert (held_out["always"], held_out["values"]) == (True, True)


def test_parts_are_one_study(study):
    assert len({study(REFERENCES, f"part={part}").name for part in ("all", "beta", "objectives", "references")}) == 1


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
    assert len(full.published) == (2 + 10) + (4 + 20) + (2 + 2 + 6) + (20 + 1) + 7 + 5
    for number in full.published:
        assert any(number.labels.items() <= t.labels.items() for t in full.trials), number
        assert number.source.startswith("arXiv 2407.13709v2, table ")
    numbers = {
        (n.labels.get("objective", n.labels["method"]), n.metric): n for n in full.published if "3" in n.source[-1]
    }
    lengths = {name: n.value for (name, metric), n in numbers.items() if "length" in metric}
    assert lengths == {"none": 205.0, "dpo": 359.4, "probability": 744.5, "likelihood": 389.3}
    assert {n.unit for n in full.published} == {"%", "share", "tokens"}
    for number in full.published:
        assert (number.unit == "share") == number.metric.startswith("ranking accuracy")
        assert number.value is None or number.unit != "share" or 0 < number.value < 1
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
