"""The report of a made-up study of 40 rows, and of studies in which something is hostile or absent."""

from __future__ import annotations

import copy
import csv
import io
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxalign.studies.report import markdown, render, write_report
from jaxalign.studies.report.results import Results
from jaxalign.studies.report.tables import csv_text, latex_text
from jaxalign.studies.report.wording import DASH
from tests.studies import made_up_rows


class Elements(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    VOID = ("meta", "br")

    def __init__(self, page):
        super().__init__()
        self.seen, self.open, self.ids = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page):
    """What a reader sees, tags gone."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])))


@pytest.fixture(scope="module")
def rows():
    return made_up_rows.rows()


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    folder = made_up_rows.write(tmp_path_factory.mktemp("study"), rows)
    return write_report(folder)


@pytest.fixture(scope="module")
def page(written):
    return written.html.read_text()


def means(rows):
    """``(start, method, beta, world)`` -> mean exact match of its rows that are sound, counted here anew."""
    found = {}
    for row in rows:
        if row["status"] != "done" or row["results"]["generations"].get("degenerate"):
            continue
        labels, answers = row["labels"], row["results"]["answers"]
        key = (labels["start"], labels["method"], labels.get("beta"), answers["protocol"]["world"])
        found.setdefault(key, []).append(sum(answers["metrics"]["exact"]["values"]) / made_up_rows.QUESTIONS)
    return {key: f"{100 * np.mean(values):.1f}" for key, values in found.items()}


def test_the_page_is_whole_and_loads_nothing(written, page):
    elements = Elements(page)
    assert written.html.stat().st_size < 5e6
    assert not [tag for tag, _ in elements.seen if tag in ("script", "link", "img", "iframe", "object", "base")]
    for _, attributes in elements.seen:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", page.partition("</head>")[0])
    ids = [attributes["id"] for _, attributes in elements.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in elements.seen if tag == "a"} <= set(ids)


def test_readers_who_do_not_see_are_told(page):
    elements = Elements(page)
    for tag, attributes in elements.seen:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_part_is_there(page):
    titles = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert titles == [
        "Results",
        "Paired differences",
        "Curves",
        "Score against divergence",
        "By category",
        "Log-probabilities in training",
        "Tokens and lengths",
        "Samples side by side",
        "All metrics",
        "Published numbers",
        "Rows without a score",
        "How the numbers were computed",
        "How the rows were made",
    ]


def test_the_main_table_has_the_means_of_every_setting(rows, page):
    section = page.partition('<h2 id="results">')[2].partition("</section>")[0]
    shown = {}
    for number, table in enumerate(section.split("<table>")[1:]):
        for line in re.findall(r"<tr[^>]*>(<th scope=\"row\">.*?)</tr>", table):
            cells = [text_of("</style>" + cell).strip() for cell in re.split(r"</t[hd]>", line)]
            method, start, beta, value = cells[:4]
            shown[start, method, None if beta == DASH else float(beta), "a90c" if number == 0 else "b71f"] = value
    expected = means(rows)
    assert {key: value for key, value in shown.items() if value != "degenerate"} == expected
    assert shown["base", "dpo", 0.01, "a90c"] == "degenerate"
    assert len(expected) == 20


def test_the_answer_names_the_best_and_no_more_than_holds(rows, page):
    text = text_of(page)
    of_a = {key[:3]: float(value) for key, value in means(rows).items() if key[3] == "a90c"}
    (start, method, beta), value = max(of_a.items(), key=lambda item: item[1])
    assert f"The highest exact (answers) is {value:.1f} % [" in text
    assert f"of method {method}, start {start}, beta {beta:g} (2 rows, 120 items each)" in text
    assert "1 row of 40 failed and is in no mean. 2 rows are degenerate" in text
    held = page.partition("<h3>Between values of method</h3>")[2].partition("</table>")[0]
    found = re.search(r"(\d) differences? of (\d) holds? after correction", text)
    assert found is not None
    assert int(found[1]) == held.count("<b>holds</b>")
    assert int(found[2]) == held.count("<tr>") - 1


def test_mismatched_protocols_are_loud_and_apart(page):
    text = text_of(page)
    assert "The headline was not measured in the same way of all rows" in text
    assert 'Protocol B , 1 row: world = "b71f"' in text
    assert "Protocol B. Not comparable with the tables above." in text
    assert "Other measures with several protocols: held_out" in text


def test_failed_and_degenerate_rows_have_their_reasons(rows, page):
    text = text_of(page)
    assert "align: NumericsError loss is nan at step 37, expected a number" in text
    assert text.count("of 64 answers 91 % repeat themselves") == 2


def test_drift_is_told_per_token(page):
    text = text_of(page)
    assert "change, nats per token" in text
    found = re.search(r"In (\d+) of 18 settings the chosen completions fell by more than one nat per token", text)
    assert found is not None
    assert found[1] == "6"  # those of beta 0.01


def test_published_numbers_stand_with_their_source(rows, page):
    section = text_of("</style>" + page.partition('<h2 id="published">')[2].partition("</section>")[0])
    ours = means(rows)["sft", "dpo", 0.1, "a90c"]
    assert re.search(
        rf"method dpo, beta 0.1, start sft win rate 14.03 % {ours} % \[[^]]*\] exact \(answers\) A Paper",
        section,
    )
    assert "method dpo, beta 0.01, start base win rate degenerate degenerate exact (answers) A Paper" in section


def test_samples_stand_side_by_side(rows, page):
    section = page.partition('<h2 id="samples">')[2].partition("</section>")[0]
    parts = section.split("<details")[1:]
    assert len(parts) == 6
    assert [" open" in part.partition(">")[0] for part in parts] == [True] + [False] * 5
    first = text_of("</style><" + parts[0])
    for method in ("none", "dpo", "ipo", "kto"):
        row = next(r for r in rows if r["labels"]["method"] == method and r["labels"].get("beta", 0.01) == 0.01)
        for sample in row["results"]["generations"]["samples"][:6]:
            assert sample["prompt"] in first
            assert sample["completion"] in first


def test_csv_has_every_number(rows, written):
    table = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    expected = {
        (row["row"], measure, name): metric["value"]
        for row in rows
        for measure, outcome in row["results"].items()
        for name, metric in outcome["metrics"].items()
    }
    found = {(t["row"], t["measure"], t["metric"]): float(t["value"]) for t in table if t["measure"]}
    assert found == expected
    (failed,) = [t for t in table if t["status"] == "failed"]
    assert failed["error"] == "align: NumericsError: loss is nan at step 37, expected a number"
    assert {t["degenerate"] for t in table if t["label:method"] == "dpo" and t["label:beta"] == "0.01"} == {
        "",
        "of 64 answers 91 % repeat themselves",
    }
    assert len({t["protocol"] for t in table if t["measure"] == "answers"}) == 2


def test_latex_and_markdown_have_the_same_means(rows, written):
    expected = means(rows)
    latex, text = written.latex.read_text(), written.markdown.read_text()
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 1
    assert [
        line.count(" & ") for line in latex.splitlines() if line.endswith(" \\\\") and "multicolumn" not in line
    ] == [6] * 22
    for (start, method, beta, world), value in expected.items():
        beta_text = DASH if beta is None else f"{beta:g}"
        line = next(
            line
            for line in text.partition("Protocol B" if world == "b71f" else "Protocol A")[2].splitlines()
            if line.startswith(f"| {method} | {start} | {beta_text} | ")
        )
        assert line.split(" | ")[3] == value
        tex = [
            x for x in latex.splitlines() if x.startswith(f"{method} & {start} & {beta_text.replace(DASH, '--')} & ")
        ]
        assert value in tex[1 if world == "b71f" else 0]
    best = max(float(value) for key, value in expected.items() if key[3] == "a90c")
    assert latex.count("\\textbf") == 1
    assert f"\\textbf{{{best:.1f}}}" in latex
    rows_of_main = text.partition("Protocol A")[2].partition("Protocol B")[0]
    assert rows_of_main.count("| best |") == 1


HOSTILE = "<script>alert(1)</script> & \\input{x} $1_2^3 100% #{~} | [a](b) \u2028\u0085 \"'`"


def hostile(rows):
    made = copy.deepcopy(rows[:6])
    for row in made:
        row["study"] |= {"name": HOSTILE, "question": HOSTILE, "notes": [HOSTILE]}
        row["study"]["published"] = [
            {"labels": {"method": HOSTILE}, "metric": HOSTILE, "value": 1.0, "source": HOSTILE}
        ]
        row["labels"]["method"] = HOSTILE if row["labels"]["method"] == "dpo" else "none"
        row["labels"][HOSTILE] = HOSTILE
        row["row"] += HOSTILE
        answers = row["results"]["answers"]
        answers["metrics"][HOSTILE] = dict(answers["metrics"]["exact"], unit=HOSTILE)
        answers["notes"] = [HOSTILE]
        answers["protocol"][HOSTILE] = HOSTILE + row["row"]
        for sample in row["results"]["generations"]["samples"]:
            sample |= {"prompt": [{"role": "user", "content": HOSTILE}], "completion": HOSTILE}
        row["results"][HOSTILE] = copy.deepcopy(row["results"]["generations"]) | {"degenerate": HOSTILE}
        for stage in row["stages"]:
            stage["config"]["data"] = {"train": HOSTILE + row["row"]}
    made[-1] |= {"status": "failed", "error": {"stage": "x", "type": "y", "message": HOSTILE}, "results": {}}
    return made


def test_hostile_text_is_text(rows, tmp_path):
    written = write_report(made_up_rows.write(tmp_path, hostile(rows)))
    page, latex, text = (path.read_text() for path in (written.html, written.latex, written.markdown))
    elements = Elements(page)
    assert not [tag for tag, _ in elements.seen if tag in ("script", "a") and tag == "script"]
    assert escape("<script>alert(1)") in page
    assert "<script" not in text
    assert "](b)" not in text.replace("\\]", "")
    assert "\\input" not in latex
    for line in latex.splitlines():
        if line.endswith("\\\\"):
            bare = re.sub(r"\\[&%$#_{}\\]", "", line)
            assert not set("#_~^") & set(bare)
            assert "%" not in bare
    table = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    assert {t[f"label:{HOSTILE}"] for t in table} == {HOSTILE}


def only(rows, **labels):
    return [copy.deepcopy(row) for row in rows if labels.items() <= row["labels"].items()]


def test_a_single_row(rows):
    results = Results(only(rows, start="sft", method="dpo", beta=0.1, seed=0))
    page = render(results)
    Elements(page)
    text = text_of(page)
    assert "(1 row, 120 items each)" in text
    assert "the intervals cover the choice of items, not the chance of training" in text
    assert "best</span>" not in page
    assert "No two values of method were measured with everything else equal" in text
    assert markdown(results)
    assert latex_text(results)


def test_nothing_but_failures(rows):
    made = copy.deepcopy(rows[:3])
    for row in made:
        row |= {"status": "failed", "results": {}, "stages": [], "error": {"type": "OSError", "message": "gone"}}
    results = Results(made)
    page = render(results)
    Elements(page)
    assert "No row was finished, so there is no answer." in text_of(page)
    assert page.partition('id="failures"')[2].count(">gone<") == 3
    assert "OSError: gone" in csv_text(results)
    assert "failed" in latex_text(results)
    assert "gone" in markdown(results)


def test_without_curves_details_samples_or_values(rows):
    made = [row for row in copy.deepcopy(rows) if row["labels"]["start"] == "sft"]
    for row in made:
        row["results"] = {"answers": row["results"]["answers"]}
        metric = row["results"]["answers"]["metrics"]["exact"]
        del metric["values"]
        row["results"]["answers"]["metrics"] = {"exact": metric}
        row["stages"] = []
    results = Results(made)
    page = render(results)
    Elements(page)
    titles = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert titles == ["Results", "Paired differences", "Curves", "All metrics", "Published numbers", *titles[-2:]]
    assert "120" in page  # items are still told


def test_without_values_and_with_one_seed_nothing_is_claimed(rows):
    made = [row for row in copy.deepcopy(rows) if row["labels"]["seed"] == 0 and row["labels"]["start"] == "sft"]
    for row in made:
        for metric in row["results"]["answers"]["metrics"].values():
            del metric["values"]
    text = text_of(render(Results(made)))
    assert "so it has no interval" in text
    assert "9 could not be tested" in text
    assert "could not be tested: they have one row each" in text


def test_a_headline_that_was_not_measured(rows):
    made = copy.deepcopy(rows[:4])
    for row in made:
        row["study"]["headline"] = "suite/accuracy"
    page = render(Results(made))
    Elements(page)
    assert "The headline, accuracy (suite), has no value in any row" in text_of(page)


def test_a_headline_without_direction(rows):
    made = copy.deepcopy(rows[:6])
    for row in made:
        row["study"]["headline"] = "generations/length"
    text = text_of(render(Results(made)))
    assert "is neither good nor bad in itself, so no row is best" in text


def beta_study():
    """Objectives and references at several betas, nothing of it luck: one is best at beta 1, another at 0.1."""
    truth = {
        ("dpo", "self"): {0.01: 40, 0.1: 60, 1.0: 100},
        ("dpo", "better"): {0.01: 40, 0.1: 58, 1.0: 98},
        ("probability", "none"): {0.01: 40, 0.1: 90, 1.0: 60},
        None: {None: 50},
    }
    made = []
    for kind, beta, right in [(kind, beta, n) for kind, found in truth.items() for beta, n in found.items()]:
        for seed in (0, 1):
            values = np.where(np.arange(120) < right, 1.0, 0.0)
            values[np.random.default_rng((seed, right)).integers(0, 120, 4)] = 1.0
            labels = {"start": "sft", "method": "none" if kind is None else "dpo", "seed": seed}
            if kind is not None:
                labels |= {"objective": kind[0], "reference": kind[1], "beta": beta}
            exact = {"value": float(values.mean()), "n": 120, "values": values.tolist(), "higher_is_better": True}
            ends = {
                f"end/logp/{side}": {"value": -float(beta or 0) - x, "n": 9, "unit": "nats"}
                for side, x in (("chosen", 0.5), ("rejected", 1.5))
            }
            kl = {"value": 3.0 / (beta or 1), "n": 120, "unit": "nats"}
            results = {"answers": {"metrics": {"exact": exact, "kl": kl}}, "token_shift": {"metrics": ends}}
            study = {"name": "s", "question": "?", "headline": "answers/exact", "compare": "beta"}
            row = {"study": study, "row": str(len(made)), "labels": labels, "status": "done", "results": results}
            made.append(row)
    return made


def test_a_compared_number_has_a_line_for_every_other_setting():
    results = Results(beta_study())
    page = render(results)
    Elements(page)
    curves = page.partition("<h3>Against beta</h3>")[2].partition("</figure>")[0]
    assert curves.count('<div class="panel">') == 1
    assert curves.count("<polyline") == 3
    for words in ("dpo, self", "dpo, better", "probability, none"):
        assert words in curves
    text = text_of(page)
    assert "With objective dpo, reference self, the highest is at beta 1 (" in text
    assert "0.01, 0.1 and no beta are worse." in text
    assert "With objective probability, reference none, the highest is at beta 0.1 (" in text
    # An objective that is never seen with another's references is compared with it all the same.
    assert "Between values of objective, reference" in text
    assert "dpo, self \N{MINUS SIGN} probability, none" in text
    assert "Differences between values of objective, reference" in markdown(results)


def test_where_lower_is_better_the_answer_says_so():
    made = beta_study()
    for row in made:
        row["results"]["answers"]["metrics"]["exact"]["higher_is_better"] = False
    text = text_of(render(Results(made)))
    assert "With objective dpo, reference self, the lowest is at beta 0.01 (" in text
    assert "0.1, 1 and no beta are worse." in text


def test_labels_that_say_nothing_are_left_out_but_never_the_compared_one():
    made = made_up_rows.rows(questions=8)
    results = Results([row for row in made if row["labels"]["start"] == "sft"])
    assert results.columns == ("method", "beta")
    assert results.telling({"method": "none", "start": "sft"}) == {"method": "none"}
    both = Results(made)
    assert both.telling({"method": "none", "start": "sft"}) == {"method": "none", "start": "sft"}


def test_ends_are_averaged_over_numbers():
    results = Results(beta_study())
    section = text_of("</style>" + render(results).partition('<h2 id="ends">')[2].partition("</section>")[0])
    assert "method dpo, objective dpo, reference self" in section
    mean = -0.5 - (0.01 + 0.1 + 1.0) / 3
    assert f"{mean:.2f}".replace("-", "\N{MINUS SIGN}") in section
    assert "Means over beta and seeds" in section
    assert "## End of answers" in markdown(results)


def test_held_out_log_ratios_are_no_divergence():
    made = beta_study()
    for row in made:
        row["results"]["held_out"] = {"metrics": {"kl/sequence": {"value": -9.0, "n": 9, "unit": "nats"}}}
        del row["results"]["answers"]["metrics"]["kl"]
    assert "Score against divergence" not in render(Results(made))


@pytest.mark.parametrize(
    ("value", "unit", "ours", "expected"),
    [(0.718, "share", "share", "71.8 %"), (0.718, None, "share", "71.8 %"), (14.03, None, "share", "14.03 %"),
     (14.03, "%", "share", "14.03 %"), (0.9, "%", "share", "0.9 %"), (7.25, None, "score", "7.25 score"),
     (0.5, "%", None, "0.5 %"), (0.5, None, None, "0.5")],
)  # fmt: skip
def test_published_numbers_have_our_unit(value, unit, ours, expected):
    made = beta_study()[-1:]
    each = {"labels": {"method": "none"}, "metric": "m", "value": value, "source": "p"}
    each |= {"unit": unit} if unit else {}
    if ours:
        made[0]["results"]["answers"]["metrics"]["exact"]["unit"] = ours
        each["ours"] = "answers/exact"
    made[0]["study"] = {**made[0]["study"], "published": [each]}
    text = markdown(Results(made)).partition("## Published numbers")[2]
    cells = next(line.split(" | ") for line in text.splitlines() if line.startswith("| method none"))
    assert cells[2] == expected
    assert (cells[3] != DASH) == bool(ours)


def test_the_same_rows_give_the_same_page(rows, page):
    assert render(Results(rows)) == page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_it_without_complaint(written, tmp_path, scheme):
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--screenshot={picture}",
            "--window-size=1280,3000",
            written.html.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 50_000
