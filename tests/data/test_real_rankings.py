"""Published rankings and judgements load as they are; the counts are found again here, from the files alone."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from jaxalign.data.examples import load_examples


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def trees(shared_data):
    """(conversation, {answer: rank}) of each message with ranked answers, by a walk of its own."""
    found = []
    stack = [([], tree["prompt"]) for tree in read(shared_data / "pref-oasst-trees" / "en_100_tree.jsonl.gz")]
    while stack:
        before, message = stack.pop()
        here = [*before, message["text"]]
        ranks = {reply["text"]: reply["rank"] for reply in message["replies"] if "rank" in reply}
        if len(ranks) > 1:
            found.append((here, ranks))
        stack += [(here, reply) for reply in message["replies"]]
    return found


def test_conversation_trees(shared_data, stories, trees):
    path = shared_data / "pref-oasst-trees" / "en_100_tree.jsonl.gz"
    examples, report = load_examples(path, stories, layout="ranked", chat_template="chatml")
    assert report.rows == 100
    assert not report.dropped
    assert len(examples) == len(trees) == 212
    assert examples.completions == max(len(ranks) for _, ranks in trees) == 9
    assert (examples.completion_lengths > 0).sum() == sum(len(ranks) for _, ranks in trees) == 641
    present = examples.completion_lengths > 0
    assert Counter(present.sum(axis=1).tolist()) == Counter(len(ranks) for _, ranks in trees)
    by_prompt = {tuple(here): ranks for here, ranks in trees}
    for i in range(0, len(examples), 7):
        example = examples[i]
        turns = stories.decode(example.prompt, skip_special_tokens=False).split("<|im_start|>")[1:]
        said = [turn.partition("\n")[2].rsplit("<|im_end|>", 1)[0] for turn in turns][:-1]
        ranks = next(r for here, r in by_prompt.items() if [" ".join(t.split()) for t in here] == norm(said))
        count = len(ranks)
        assert example.columns["scores"].tolist() == [-float(rank) for rank in range(count)] + [0.0] * (9 - count)
        for rank, ids in enumerate(example.completions[:count]):
            (answer,) = norm([stories.decode(ids).rsplit("<|im_end|>", 1)[0]])
            assert ranks[next(text for text in ranks if " ".join(text.split()) == answer)] == rank


def norm(texts):
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("mode", ["extremes", "all"])
def test_pairs_of_conversation_trees(shared_data, stories, trees, mode):
    path = shared_data / "pref-oasst-trees" / "en_100_tree.jsonl.gz"
    options = {"chat_template": "chatml", "pairs_per_prompt": mode, "needs": ("scores",), "max_length": 512}
    examples, report = load_examples(path, stories, **options)
    expected = {"extremes": len(trees), "all": sum(len(r) * (len(r) - 1) // 2 for _, r in trees)}[mode]
    assert len(examples) == report.notes["pair out of a ranking"] == expected == {"extremes": 212, "all": 754}[mode]
    assert (examples.columns["scores"][:, 0] > examples.columns["scores"][:, 1]).all()


def test_graded_pairs(shared_data, stories):
    path = shared_data / "pref-ultrafeedback" / "train.jsonl.gz"
    rows = read(path)
    examples, report = load_examples(path, stories, needs=("scores",), max_length=512)
    same = sum(row["chosen"] == row["rejected"] for row in rows)
    empty = sum(not row["chosen"].strip() or not row["rejected"].strip() for row in rows)
    assert report.dropped == {"identical pair": same, "empty answer": empty, "special token in text": 4}
    kept = [int(source.partition(" row ")[2]) - 1 for source in examples.sources]
    assert len(kept) == 1000 - sum(report.dropped.values())
    graded = [[rows[i]["metadata"][f"score_{side}"] for side in ("chosen", "rejected")] for i in kept]
    np.testing.assert_array_equal(examples.columns["scores"], np.float32(graded))
    ranked, report = load_examples(path, stories, layout="ranked", max_length=512)
    assert ranked.completions == 2
    np.testing.assert_array_equal(ranked.columns["scores"], np.float32(graded))
    ties = sum(first == second for first, second in graded)
    assert report.notes["ranking in which all scores are equal"] == ties == 110


def test_votes_of_annotators(shared_data, stories):
    path = shared_data / "pref-pandalm-human" / "testset-v1.jsonl.gz"
    examples, report = load_examples(path, stories, needs=("preference",), on_bad="drop")
    _, without_ties = load_examples(path, stories, on_bad="drop")
    expected, ties, empty, odd = [], 0, 0, 0
    for row in read(path):
        answers = [row["response1"], row["response2"]]
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        lead = votes.count(1) - votes.count(2)
        if lead < 0:
            answers.reverse()
        if not all(isinstance(a, str) for a in answers):
            odd += 1
        elif not all(a.strip() for a in answers):
            empty += 1
        else:
            ties += lead == 0
            expected.append((*answers, 0.5 + abs(lead) / 6))
    assert report.dropped == {"empty answer": empty, "wrong type": odd} == {"empty answer": 42, "wrong type": 6}
    assert "tie, no preferred answer" not in report.notes  # the probability 0.5 is one
    assert without_ties.notes["tie, no preferred answer"] == ties == 72
    assert len(examples) == len(expected) == 828 - 42 - 6
    np.testing.assert_allclose(examples.columns["preference"], [share for *_, share in expected], rtol=1e-6)
    for example, (chosen, rejected, _) in zip(examples, expected, strict=True):
        assert norm([stories.decode(c[:-1]) for c in example.completions]) == norm([chosen, rejected])


def test_soft_labels_of_a_judge(shared_data, stories):
    """The prompts are in a file of their own: the join is the user's."""
    folder = shared_data / "pref-tldr-judged"
    prompts = {row["id"]: row["prompt"] for row in read(folder / "prompts.jsonl.gz")}
    rows = read(folder / "pairs.jsonl.gz")[:3000]
    joined = [{**row, "prompt": prompts[row["prompt"]]} for row in rows]
    examples, report = load_examples(joined, stories, needs=("preference", "win_probabilities"), max_length=1024)
    assert len(examples) == 3000
    assert not report.dropped
    sure = np.array([abs(row["preference"] - 1.5) + 0.5 for row in rows])
    np.testing.assert_allclose(examples.columns["preference"], sure, rtol=1e-6)
    np.testing.assert_allclose(examples.columns["win_probabilities"], np.stack([sure, 1 - sure], 1), atol=1e-6)
    for i in range(0, 3000, 97):
        first, second = (rows[i]["a"], rows[i]["b"]) if rows[i]["preference"] <= 1.5 else (rows[i]["b"], rows[i]["a"])
        assert norm([stories.decode(c[:-1]) for c in examples[i].completions]) == norm([first, second])


def test_solutions(shared_data, stories):
    path = shared_data / "pref-gsm8k-solutions" / "example_model_solutions.jsonl.gz"
    pairs, firsts, labels, mixed = 0, 0, Counter(), 0
    for row in read(path):
        solutions = {v["solution"]: v["is_correct"] for v in row.values() if isinstance(v, dict)}
        labels.update(solutions.values())
        wins = sum(a and not b for a, b in itertools.product(solutions.values(), repeat=2))
        pairs, firsts = pairs + wins, firsts + bool(wins)
        mixed += len(set(solutions.values())) == 2
    every, _ = load_examples(path, stories, needs=("absolute", "scores"), pairs_per_prompt="all")
    assert len(every) == pairs == 1885
    assert every.columns["absolute"].all()
    assert (every.columns["scores"] == [1.0, 0.0]).all()
    one, _ = load_examples(path, stories, needs=("absolute",))
    assert len(one) == firsts == mixed == 569
    single, report = load_examples(path, stories, layout="unpaired")
    assert report.labels == {"desirable": labels[True], "undesirable": labels[False]}
    assert len(single) == labels.total() == 4082
