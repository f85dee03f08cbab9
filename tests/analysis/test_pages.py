"""The pages: whole, on their own, and saying the numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxalign.analysis import credit_page, field_page
from jaxalign.analysis.credit import Completion, Credited, CreditMap
from jaxalign.analysis.field import Field, gradient_field
from jaxalign.analysis.page import target_problems, write
from jaxalign.methods import METHODS

VOID = {"meta", "rect", "path", "line"}


class Balance(HTMLParser):
    """Counts open elements."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?://|<script|<link|@import|url\(", page), "it loads something"
    assert "prefers-color-scheme: dark" in page


def test_field_page():
    field = gradient_field(METHODS["dpo"], {"beta": 0.5}, extent=2.0, points=21)
    page = field_page.render(field, "loss = -log sigmoid(h) < 1")
    whole(page)
    assert "Gradient field of dpo" in page
    assert "beta = 0.5" in page
    assert "sigmoid(h) &lt; 1" in page
    assert "log x1 = 0.00, log x2 = 0.00\nloss 0.69315\ndL/dlog x1 -0.25\ndL/dlog x2 0.25" in page
    assert "nan" not in page
    assert len(re.findall(r'class="arrow"', page)) == 1


@pytest.mark.parametrize("values", [0.0, np.nan, np.inf])
def test_field_page_of_a_flat_or_broken_loss(values: float):
    axis = np.linspace(-1, 1, 5, dtype=np.float32)
    broken = np.full((5, 5), values, np.float32)
    whole(field_page.render(Field("m", {}, True, (-1.0, -2.0), axis, axis, broken, broken, broken)))


def test_arrows_point_down_the_loss():
    """The arrow of DPO at the middle goes right (chosen up) and down (rejected down)."""
    field = gradient_field(METHODS["dpo"], extent=1.0, points=7)
    page = field_page.render(field)
    drawn = re.search(r'class="arrow" d="([^"]+)"', page)
    assert drawn is not None
    moves = re.findall(r"M([-\d.]+),([-\d.]+)L([-\d.]+),([-\d.]+)", drawn[1])
    assert len(moves) == 25
    for x0, y0, x1, y1 in moves:
        assert float(x1) > float(x0)
        assert float(y1) > float(y0)  # in SVG, down


def credit_map(**changes) -> CreditMap:
    def completion(name: str, tokens: tuple[str, ...], policy: list[float]) -> Completion:
        values = np.array(policy)
        fixed = np.full(len(tokens), -1.0)
        return Completion(name, tokens, values, fixed, 0.1 * (values - fixed))

    chosen = completion("chosen", ("Yes", " <b>", "\n"), [-0.5, -1.0, -1.25])
    rejected = completion("rejected", ("No",), [-3.0])
    examples = (Credited("a.jsonl row 1", "Is it & so?", (chosen, rejected)),)
    return replace(CreditMap("runs/dpo/export", "start", "dpo", 0.1, examples), **changes)


def test_credit_page():
    found = credit_map()
    page = credit_page.render(found)
    whole(page)
    assert "Is it &amp; so?" in page
    assert "&lt;b&gt;</span>" in page
    assert "⏎\n</span>" in page
    assert "reward +0.025, 3 tokens, log-ratio +0.25 nats" in page
    assert "margin of reward +0.225: ranked as the data says" in page
    assert "the implicit reward, of DPO and of dpo. Pairs that it ranks as the data says: 1 of 1." in page
    assert "measured against the model before training (<code>start</code>)." in page
    assert "less likely, more likely than before training;" in page
    assert "option" not in page
    assert 'title="credit +0.0500\nlog-probability -0.500 nats, reference -1.000\ntoken 1 of 3"' in page
    strengths = re.findall(r'<span class="(.)" style="--a:([\d.]+)"', page)
    assert [style for style, _ in strengths] == ["u", "d", "d", "d"]
    assert float(strengths[1][1]) == 0.0
    assert float(strengths[3][1]) == credit_page.STRONGEST


def test_credit_page_of_another_reward():
    """It names the reward DPO's, and does not rank by it."""
    found = credit_map(method="simpo", trained_against=False, is_method_reward=False, beta_option="ld_simpo_beta")
    page = credit_page.render(found)
    whole(page)
    assert "(<code>start</code>), which the method itself does not use." in page
    assert "the implicit reward of DPO with this beta, which need not be that of simpo itself." in page
    assert "beta = 0.1 (option ld_simpo_beta)" in page
    assert "margin of DPO's reward +0.225</p>" in page
    assert "DPO's reward +0.025, 3 tokens" in page
    assert "as the data says" not in page


def test_credit_page_of_another_reference():
    page = credit_page.render(credit_map(reference="other", reference_is_start=False, beta_option=None))
    assert "measured against <code>other</code>." in page
    assert "less likely, more likely than under the reference;" in page
    assert "since the method has none" in page
    assert "before training" not in page


@pytest.mark.parametrize(
    ("method", "text"), [("bco", "shift delta"), ("bco_pair", "shift delta"), ("kto", "KL divergence"), ("dpo", None)]
)
def test_credit_page_tells_what_is_left_out(method: str, text: str | None):
    page = credit_page.render(credit_map(method=method))
    assert ("is left out" in page) == (text is not None)
    assert text is None or text in page


def test_credit_numbers():
    numbers = credit_map().as_dict()
    assert json.loads(json.dumps(numbers)) == numbers
    (example,) = numbers["examples"]
    assert numbers["beta_option"] == "beta"
    assert numbers["trained_against_reference"]
    assert numbers["dpo_reward_is_method_reward"]
    assert example["dpo_margin"] == pytest.approx(0.225)
    chosen, rejected = example["completions"]
    assert chosen["dpo_reward"] == pytest.approx(sum(chosen["credit"]))
    assert rejected["credit"] == pytest.approx([-0.2])


def test_targets(tmp_path: Path):
    assert target_problems(tmp_path / "new" / "a.html") == []
    assert target_problems(tmp_path / "a.json") == []
    (problem,) = target_problems(tmp_path / "a.png")
    assert "expected a file that ends in .html (a page) or .json" in problem
    (tmp_path / "file").write_text("")
    assert "no file can be written" in target_problems(tmp_path / "file" / "a.html")[0]
    write(tmp_path / "new" / "a.html", "<p>", {})
    write(tmp_path / "a.json", "<p>", {"a": "é"})
    assert (tmp_path / "new" / "a.html").read_text() == "<p>"
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"a": "é"}\n'
