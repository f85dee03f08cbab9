"""Settings, means and paired differences against what is computed here by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.evaluation.statistics import holm, seeds_and_items, wilson
from jaxalign.studies.report.comparisons import best_of, by_setting, estimate, over_settings
from jaxalign.studies.report.results import Results, degenerate
from tests.studies import made_up_rows


@pytest.fixture(scope="module")
def rows():
    return made_up_rows.rows(questions=40)


@pytest.fixture(scope="module")
def results(rows):
    return Results(rows)


def row(method, seed, values, *, score=True, protocol=None, **labels):
    """A row with one metric, ``m/x``."""
    metric = {"value": float(np.mean(values)), "n": len(values), "values": list(values), "unit": "points"}
    if score:
        metric["higher_is_better"] = True
    outcome = {"metrics": {"x": metric}, "protocol": protocol or {}}
    names = {"method": method, **labels} | ({} if seed is None else {"seed": seed})
    study = {"name": "s", "question": "?", "headline": "m/x", "compare": "method"}
    return {"study": study, "row": str(names), "labels": names, "status": "done", "results": {"m": outcome}}


def values_of(rows, **labels):
    return [
        r["results"]["answers"]["metrics"]["exact"]["values"]
        for r in rows
        if labels.items() <= r["labels"].items() and r["status"] == "done"
    ]


def test_settings_are_rows_that_differ_in_their_seed(rows, results):
    sizes = {}
    for each in rows:
        if each["status"] == "done":
            key = tuple(each["labels"].get(name) for name in ("start", "method", "beta"))
            way = each["results"]["answers"]["protocol"]["world"]
            sizes[key, way] = sizes.get((key, way), 0) + 1
    found = {}
    for group in results.groups:
        key = tuple(group.labels.get(name) for name in ("start", "method", "beta"))
        found[key, group.rows[0]["results"]["answers"]["protocol"]["world"]] = len(group.rows)
    assert found == sizes
    assert len(found) == 21


def test_a_seed_in_the_protocol_is_no_other_protocol(results):
    assert len(results.protocols["generations"]) == 1
    assert len(results.protocols["answers"]) == 2


def test_mean_and_interval_of_a_setting(rows, results):
    group = next(g for g in results.groups if g.labels == {"start": "sft", "method": "kto", "beta": 0.1})
    values = values_of(rows, start="sft", method="kto", beta=0.1)
    found, expected = estimate(results, group, "answers/exact"), seeds_and_items(values)
    assert expected is not None
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), *expected[1:3]))
    assert (found.seeds, found.items, found.degenerate, found.unit) == (2, 40, 0, "share")


def test_degenerate_rows_are_in_no_score_but_in_lengths(rows, results):
    group = next(g for g in results.groups if g.labels == {"start": "base", "method": "dpo", "beta": 0.01})
    assert all(degenerate(each) for each in group.rows)
    score = estimate(results, group, "answers/exact")
    assert (score.value, score.degenerate, score.seeds) == (None, 2, 0)
    length = estimate(results, group, "generations/length")
    assert length.seeds == 2
    assert not any(d.context == {"start": "base", "beta": 0.01} and "dpo" in (d.first, d.second)
                   for d in by_setting(results, "answers/exact", "method"))  # fmt: skip


def test_paired_difference_of_a_setting(rows, results):
    found = by_setting(results, "answers/exact", "method")
    one = next(d for d in found if (d.first, d.second, d.context) == ("dpo", "kto", {"start": "sft", "beta": 0.1}))
    gaps = np.subtract(
        values_of(rows, start="sft", method="dpo", beta=0.1), values_of(rows, start="sft", method="kto", beta=0.1)
    )
    assert one.value == pytest.approx(gaps.mean())
    assert one.paired == seeds_and_items(gaps)
    assert (one.seeds, one.items) == (2, 40)
    single = [d for d in found if d.seeds == 1]
    assert all(d.adjusted is not None and d.paired is not None and d.adjusted >= d.paired.p for d in single)
    assert len(single) < len(found)


def test_a_table_is_corrected_by_holm():
    rng = np.random.default_rng(2)
    made = [row(name, 0, rng.normal(shift, 1, 30)) for name, shift in (("a", 0.0), ("b", 0.5), ("c", 0.9))]
    found = by_setting(Results(made), "m/x", "method")
    assert [d.adjusted for d in found] == holm([d.paired.p for d in found if d.paired])


def test_difference_over_settings_pairs_seeds_and_items(rows, results):
    found = over_settings(results, "answers/exact", "method")
    one = next(d for d in found if (d.first, d.second) == ("kto", "none"))
    gaps = []
    for start in ("sft", "base"):
        for beta in made_up_rows.BETAS:
            kto, none = (
                values_of(rows, start=start, method="kto", beta=beta),
                values_of(rows, start=start, method="none"),
            )
            gaps.append(np.subtract(kto[:1], none[:1]))  # seed 1 of one of the settings failed
    assert one.value == pytest.approx(np.mean(gaps))
    assert one.paired == seeds_and_items(np.mean(gaps, 0))
    assert (one.settings, one.seeds) == (6, 1)


def test_other_protocols_are_compared_with_nothing(results):
    other = next(g for g in results.groups if g.protocol == 1)
    assert other.labels == {"start": "sft", "method": "ipo", "beta": 1.0}
    pairs = [d for d in by_setting(results, "answers/exact", "method") if d.context == {"start": "sft", "beta": 1.0}]
    assert {d.seeds for d in pairs if "ipo" in (d.first, d.second)} == {1}
    groups = [g for g in results.groups if g.protocol == 0]
    found = best_of(results, "answers/exact", groups)
    assert found is not None
    assert id(other) not in found[1]


def test_other_measures_are_never_averaged_over_protocols():
    made = [row("a", seed, [1.0, 2.0]) for seed in (0, 1)]
    made[1]["results"]["n"] = {"metrics": {"y": {"value": 1.0, "n": 1}}, "protocol": {"shots": 5}}
    made[0]["results"]["n"] = {"metrics": {"y": {"value": 3.0, "n": 1}}, "protocol": {"shots": 0}}
    results = Results(made)
    found = estimate(results, results.groups[0], "n/y")
    assert (found.value, found.mixed) == (None, True)


def test_a_model_without_seed_pairs_with_every_seed():
    made = [row("base", None, [0.0, 1.0, 0.0]), row("dpo", 0, [1.0, 1.0, 0.0]), row("dpo", 1, [1.0, 2.0, 1.0])]
    (found,) = by_setting(Results(made), "m/x", "method")
    assert (found.first, found.second, found.seeds, found.items) == ("base", "dpo", 2, 3)
    assert found.value == pytest.approx(-np.mean([[1, 0, 0], [1, 1, 1]]))


def test_no_pair_without_a_common_seed_or_setting():
    assert by_setting(Results([row("a", 0, [1.0]), row("b", 1, [2.0])]), "m/x", "method") == []
    made = [row("a", 0, [1.0], size=1), row("a", 0, [1.0], size=2), row("b", 0, [2.0], size=3)]
    assert by_setting(Results(made), "m/x", "method") == []


def test_items_that_one_model_lacks_are_left_out_of_the_pair():
    made = [row("a", 0, [1.0, 2.0, 3.0]), row("b", 0, [1.0, 1.0, 1.0])]
    made[1]["results"]["m"]["metrics"]["x"]["values"] = [1.0, None, 1.0]
    (found,) = by_setting(Results(made), "m/x", "method")
    assert found.items == 2
    assert found.paired == seeds_and_items([[0.0, 2.0]])


def test_values_of_other_lengths_are_compared_by_their_means():
    made = [row(m, s, [float(s + (m == "a"))] * (4 if m == "a" else 3)) for m in "ab" for s in (0, 1, 2)]
    made[0]["results"]["m"]["metrics"]["x"]["value"] += 0.3
    (found,) = by_setting(Results(made), "m/x", "method")
    assert (found.items, found.seeds) == (0, 3)
    assert found.value == pytest.approx(1.1)


def test_the_best_may_be_the_lowest_or_nobody():
    made = [row(name, 0, values) for name, values in (("a", [1.0, 2.0]), ("b", [5.0, 6.0]))]
    for higher, best in ((True, "b"), (False, "a")):
        for each in made:
            each["results"]["m"]["metrics"]["x"]["higher_is_better"] = higher
        results = Results(made)
        found = best_of(results, "m/x", results.groups)
        assert found is not None
        assert found[0].labels["method"] == best
    for each in made:
        del each["results"]["m"]["metrics"]["x"]["higher_is_better"]
    assert best_of(Results(made), "m/x", Results(made).groups) is None


def test_a_perfect_share_still_has_an_interval():
    made = [row("a", 0, [1.0] * 20)]
    made[0]["results"]["m"]["metrics"]["x"]["unit"] = "share"
    results = Results(made)
    found = estimate(results, results.groups[0], "m/x")
    assert (found.value, found.low, found.high) == pytest.approx(tuple(wilson(20, 20)))


def test_a_weighted_mean_keeps_its_value():
    made = [row("a", 0, [1.0, 2.0, 3.0])]
    made[0]["results"]["m"]["metrics"]["x"]["value"] = 2.5
    results = Results(made)
    found, plain = estimate(results, results.groups[0], "m/x"), seeds_and_items([[1.0, 2.0, 3.0]])
    assert plain is not None
    assert (found.value, found.low) == pytest.approx((2.5, plain.low + 0.5))


def test_a_number_that_belongs_to_the_compared_value_does_not_part_them():
    made = [row(name, seed, values, beta=beta, size=size)
            for name, beta, values in (("dpo", 0.01, [1.0, 2.0]), ("cpo", 0.1, [3.0, 3.0]))
            for size in (10, 20) for seed in (0, 1)]  # fmt: skip
    results = Results(made)
    assert results.tied("method") == ("beta",)
    assert results.numeric() == ["size"]
    found = by_setting(results, "m/x", "method")
    assert [(d.first, d.second, d.context, d.value) for d in found] == [
        ("dpo", "cpo", {"size": 10}, -1.5),
        ("dpo", "cpo", {"size": 20}, -1.5),
    ]
    made[0]["labels"]["beta"] = 0.5  # now beta is varied on its own
    assert by_setting(Results(made), "m/x", "method") == []


def test_rows_without_the_compared_label_are_a_baseline():
    made = [row("dpo", 0, [2.0, 4.0], beta=0.1), row("dpo", 0, [5.0, 5.0], beta=0.5), row("none", 0, [1.0, 1.0])]
    for each in made:
        each["study"]["compare"] = "beta"
    found = by_setting(Results(made), "m/x", "beta")
    assert [(d.first, d.second, d.value) for d in found] == [
        (0.1, 0.5, -2.0),
        (0.1, "no beta", 2.0),
        (0.5, "no beta", 4.0),
    ]


def test_a_label_that_only_some_rows_have_parts_them():
    """One run with another reference beside the usual ones is no second measurement of its method."""
    made = [
        row("dpo", 0, [2.0, 4.0], beta=0.1),
        row("dpo", 0, [9.0, 9.0], beta=0.1, reference="better"),
        row("ipo", 0, [1.0, 1.0], beta=0.1),
        row("none", 0, [0.0, 0.0]),
    ]
    results = Results(made)
    assert results.values("reference") == ["default", "better"]
    found = {(d.first, d.second): (d.value, d.settings) for d in over_settings(results, "m/x", "method")}
    assert found == {("dpo", "ipo"): (2.0, 1), ("dpo", "none"): (3.0, 1), ("ipo", "none"): (1.0, 1)}
    (other,) = by_setting(results, "m/x", "reference")
    assert (other.first, other.second, other.value) == ("default", "better", -6.0)


def equal_models(rng, settings, seeds, items, seed_spread):
    """Rows of settings that are all equally good: what differs is luck of training and of items."""
    hard = rng.normal(0, 0.25, items)
    return [
        row(
            f"m{i}", s, (rng.random(items) < np.clip(0.5 + rng.normal(0, seed_spread) + hard, 0.02, 0.98)).astype(float)
        )
        for i in range(settings)
        for s in range(seeds)
    ]


@pytest.mark.parametrize(("settings", "seeds", "seed_spread"), [(12, 1, 0.0), (8, 2, 0.03)])
def test_equal_models_seldom_differ_from_the_best(settings, seeds, seed_spread):
    """The chance of any false "differs" in a study is at most 5 %, though the best is found on the same data."""
    rng, runs = np.random.default_rng(11), 60 if seeds == 1 else 30
    false = 0
    for _ in range(runs):
        results = Results(equal_models(rng, settings, seeds, 100, seed_spread))
        found = best_of(results, "m/x", results.groups)
        assert found is not None
        false += any(d is not None and d.holds for d in found[1].values())
        if seeds > 1:
            false += any(d.holds for d in over_settings(results, "m/x", "method")) and not any(
                d is not None and d.holds for d in found[1].values()
            )
    assert false <= 0.1 * runs  # the chance of more is 3 % for 60 runs, 6 % for 30, were it 5 % for each


def test_holm_is_over_all_pairs_with_the_best():
    rng = np.random.default_rng(0)
    made = [row(f"m{i}", 0, rng.normal(shift, 1, 60)) for i, shift in enumerate((0.9, 0.5, 0.0, 0.0))]
    results = Results(made)
    found = best_of(results, "m/x", results.groups)
    assert found is not None
    every = by_setting(results, "m/x", "method")
    for place, other in enumerate(results.groups[1:], 1):
        one = found[1][id(other)]
        same = next(d for d in every if (d.first, d.second) == ("m0", f"m{place}"))
        assert one is not None
        assert one.adjusted is not None
        assert one.paired == same.paired
        assert one.adjusted == pytest.approx(same.adjusted, abs=0.02)


def bare(made, stderr):
    for each in made:
        metric = each["results"]["m"]["metrics"]["x"]
        del metric["values"]
        if stderr is not None:
            metric["stderr"] = stderr
    return made


def test_without_items_differences_have_the_standard_errors():
    made = bare([row("a", 0, [1.0, 2.0]), row("b", 0, [0.5, 1.5])], 0.3)
    (found,) = by_setting(Results(made), "m/x", "method")
    assert found.paired is not None
    assert (found.value, found.covers, found.items) == (pytest.approx(0.5), "items only", 0)
    assert found.paired.high - found.value == pytest.approx(1.959964 * 0.3 * np.sqrt(2), rel=1e-5)


@pytest.mark.parametrize(
    ("seeds", "known", "expected"),
    [(1, "values", "items only"), (2, "values", "seeds and items"), (1, None, ""), (2, None, "seeds only"),
     (1, 0.1, "items only"), (2, 0.1, "seeds and items")],
)  # fmt: skip
def test_what_an_interval_covers_is_told(seeds, known, expected):
    made = [row(m, s, [1.0 + s + (m == "b"), 2.0 - 0.5 * s]) for s in range(seeds) for m in "ab"]
    results = Results(made if known == "values" else bare(made, known))
    assert estimate(results, results.groups[0], "m/x").covers == expected
    (found,) = by_setting(results, "m/x", "method")
    assert found.covers == expected


def test_seeds_that_agree_by_luck_prove_nothing():
    """With two seeds, a pair's own spread may be far too small; the table's other pairs tell what it is."""
    means = {"a": (0.0, 0.3), "b": (1.0, 1.3), "c": (0.9, -0.6), "d": (0.8, 2.2)}
    made = bare([row(m, s, [value]) for m, pair in means.items() for s, value in enumerate(pair)], None)
    made[0]["results"]["m"]["metrics"]["x"]["value"] += 0.001
    found = next(d for d in by_setting(Results(made), "m/x", "method") if (d.first, d.second) == ("a", "b"))
    assert found.paired is not None
    assert found.paired.p < 0.001
    assert not found.holds
