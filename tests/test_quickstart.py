"""The quick start: what it measures, that its page stands alone, and that the whole of it runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from jaxalign.data.synthetic import World, write_world
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.models.huggingface import read_config
from jaxalign.models.policy import build_policy
from jaxalign.quickstart import measure, numbers, program, settings
from jaxalign.quickstart.page import render
from jaxalign.studies import charts

WORLD = World(demonstrations=300, pairs=120, eval_pairs=24, questions=40)
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY |= {"num_key_value_heads": 1, "head_dim": 16}


class Elements(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def elements(page):
    parser = Elements()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def svg(text):
    return ET.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.69), (-0.3, 12), (-41, -8.5), (5, 5), (0, 1000), (-1e-3, 0)])
def test_ticks_are_round_and_cover_the_range(low, high):
    marks = charts.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 9
    assert np.allclose(np.diff(marks), marks[1] - marks[0])


def test_line_chart_puts_values_at_their_height():
    series = [
        charts.Series("a & b", [(0, 0.0), (5, 1.0), (10, 0.5)], "sft", dots=True),
        charts.Series("none", [], "dpo"),
    ]
    chart = svg(charts.line_chart("a < b", series, x="step", y="share", include=(0, 1)))
    assert chart.get("aria-label") == "a < b"
    (line,) = chart.iter("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.get("points").split()]
    assert places == [
        (charts.LEFT, charts.FLOOR),
        ((charts.LEFT + charts.WIDTH - charts.RIGHT) / 2, charts.TOP),
        (charts.WIDTH - charts.RIGHT, (charts.TOP + charts.FLOOR) / 2),
    ]
    assert [mark.text for mark in chart.iter("title")][1] == "a & b, step 5: 1"


def test_a_chart_of_nothing_says_so():
    assert "nothing was recorded" in charts.line_chart("Loss", [], x="step", y="nats")


def test_interval_chart_spans_the_interval():
    chart = svg(charts.interval_chart("t", {"sort": [charts.Span(0.5, 0.25, 1.0, "sft", "note")]}, x="share"))
    (span,) = (line for line in chart.iter("line") if "span" in line.get("class"))
    (dot,) = chart.iter("circle")
    low, value, high = float(span.get("x1")), float(dot.get("cx")), float(span.get("x2"))
    assert (value - low) * 2 == pytest.approx(high - value, abs=0.3)


def test_histogram_bars_are_as_tall_as_their_shares():
    chart = svg(charts.histogram("t", {"a": ("sft", {2: 0.25, 4: 0.75}), "b": ("dpo", {2: 1.0})}, x="n", y="share"))
    heights = [float(bar.get("height")) for bar in chart.iter("rect")]
    full = charts.FLOOR - charts.TOP
    assert heights == pytest.approx([0.25 * full, full, 0, 0, 0.75 * full, 0], abs=0.1)


def test_numbers_read_well():
    assert numbers.percent(0.65) == "65 %"
    assert numbers.percent(0.4349) == "43.5 %"
    assert numbers.share((0.5, 0.25, 1)) == "50.0 % [25.0, 100.0]"
    assert numbers.points((-0.0001, -0.02, 0.3)) == "+0.0 points [-2.0, +30.0]"
    assert numbers.number((-0.001, -0.002, 1.5)) == "0.00 [0.00, 1.50]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A world's questions, tokenizer, and a random model of it."""
    folder = tmp_path_factory.mktemp("measure")
    files = write_world(folder / "world", WORLD)
    tokenizer = load_tokenizer(files.tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "ARCHITECTURE", settings.ARCHITECTURE | TINY)
        program.write_architecture(folder / "start", files.summary["vocabulary"], tokenizer)
    policy = build_policy(read_config(folder / "start"), dtype="float32")
    return policy, measure.read_questions(files.questions, tokenizer), tokenizer


def ask(model, seed, temperature, reference):
    policy, questions, tokenizer = model
    variables, reference = (policy.init(jax.random.key(s)) for s in (seed, reference))
    return measure.ask(policy, variables, questions, tokenizer, temperature=temperature, reference=reference, seed=0)


def test_a_model_does_not_drift_from_itself(model):
    answers = ask(model, 0, 1.0, 0)
    assert np.abs(answers.drift).max() < 1e-4
    assert answers.lengths.max() <= measure.MAX_NEW_TOKENS
    assert ask(model, 0, 1.0, 0).texts == answers.texts


def test_drift_is_a_kl_divergence_when_sampled(model):
    """Its mean over samples of the model is near a positive number; over another model's samples it need not be."""
    answers = ask(model, 1, 1.0, 0)
    assert answers.drift.mean() > 0


def test_an_answer_that_never_ends_is_not_exact(model, monkeypatch):
    _, questions, tokenizer = model

    def sample(policy, variables, prompts, **_):
        ids = [tokenizer(question.answer, add_special_tokens=False).input_ids for question in questions]
        return [
            measure.Completion(tokens, [0.0] * len(tokens), stopped=index % 2 == 0) for index, tokens in enumerate(ids)
        ]

    monkeypatch.setattr(measure, "sample", sample)
    answers = ask(model, 0, 0.0, 0)
    assert answers.texts == [question.answer for question in questions]
    assert answers.exact.tolist() == [index % 2 == 0 for index in range(len(questions))]
    greedy = measure.summarise(answers, answers, questions)["greedy"]
    assert greedy["exact"].value == 0.5
    assert sum(entry["n"] for entry in measure.summarise(answers, answers, questions)["tasks"].values()) == len(
        questions
    )


def test_the_difference_is_paired():
    flags = np.array([True, False] * 50)
    before = measure.Answers([], np.zeros(100), flags, flags, np.zeros(100))
    after = measure.Answers([], np.zeros(100), flags, ~flags, np.zeros(100))
    assert measure.difference(before, before) == (0.0, 0.0, 0.0)
    assert measure.difference(before, after).value == 0.0
    assert measure.difference(before, after).high > 0.1


@pytest.mark.slow
def test_the_whole_quick_start_runs_and_its_page_stands_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "World", lambda seed: World(**{**WORLD.__dict__, "seed": seed}))
    monkeypatch.setattr(program, "ARCHITECTURE", settings.ARCHITECTURE | TINY)
    monkeypatch.setitem(settings.SFT, "train", {"batch_size": 8, "steps": 4, "log_every": 2})
    monkeypatch.setitem(settings.PREFERENCES, "train", {"batch_size": 8, "steps": 4, "log_every": 2, "eval_every": 2})
    page = program.run(tmp_path, seed=3)
    assert page == tmp_path / "report.html"
    results = json.loads((tmp_path / "results.json").read_text())
    printed = capsys.readouterr().out
    assert (
        f"exact match, most probable answer      {numbers.share(results['models']['sft']['greedy']['exact'])}"
        in printed
    )
    assert results["seed"] == 3
    assert results["models"]["sft"]["kl"] == pytest.approx([0, 0, 0], abs=1e-3)
    assert results["models"]["dpo"]["kl"][0] != 0

    text = page.read_text()
    seen = elements(text)
    assert sum(tag == "svg" for tag, _ in seen) == 7
    assert sum(tag == "polyline" for tag, _ in seen) >= 10
    # Nothing is loaded from anywhere.
    for tag, attributes in seen:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "srcset", "style"} & attributes.keys()
    assert "url(" not in text
    assert "http" not in text
    metrics = {name: program.read_metrics(tmp_path / name) for name in ("sft", "dpo")}
    assert render(results, metrics) == text


def test_another_seed_does_not_overwrite_the_world_that_models_were_trained_on(tmp_path):
    write_world(tmp_path / "world", WORLD)
    before = (tmp_path / "world" / "pairs.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        program.run(tmp_path, seed=1)
    assert (tmp_path / "world" / "pairs.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["sft", "dpo", "ipo", "kto"])
def test_the_stages_are_valid_configurations(method):
    from jaxalign.config import from_dict

    config = from_dict(settings.sections(method, "somewhere", seed=2))
    assert config.method.name == method
    assert config.data.seed == config.train.seed == 2
    assert config.model.dtype == "float32"
