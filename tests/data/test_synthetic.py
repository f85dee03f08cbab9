"""The generated world: its checker knows the answers, its files keep the data contract, nothing held out leaks."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest

from jaxalign.data.examples import load_examples
from jaxalign.data.synthetic import (
    TASK_NAMES,
    Grade,
    World,
    answer,
    check,
    held_out,
    read,
    train_tokenizer,
    write_world,
)
from jaxalign.data.synthetic.language import OPENINGS, TASKS, WORDS, ask, without_opening
from jaxalign.data.synthetic.world import HARD, crowd_answer, judged_pair, questions
from jaxalign.errors import DataError

SMALL = World(demonstrations=600, documents=200, pairs=300, eval_pairs=40, questions=60)

KNOWN = {
    "Repeat: jay cat koala": "jay cat koala",
    "Say again: jay cat koala fox": "jay cat koala fox",
    "First word: jay cat koala": "jay",
    "Give the last: jay cat koala": "koala",
    "How many: jay cat koala fox": "4",
    "Leave out the first: jay cat koala": "cat koala",
    "Take out cat: jay cat koala": "jay koala",
    "Reverse: jay cat koala fox": "fox koala cat jay",
    "Swap first and last: jay cat koala fox": "fox cat koala jay",
    "Put in order: jay cat koala ant": "ant cat jay koala",
    "Nearest to a: jay cat koala": "cat",
}


def load(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), SMALL)


@pytest.fixture(scope="module")
def tokenizer(files):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(files.tokenizer)


@pytest.mark.parametrize(("prompt", "expected"), KNOWN.items())
def test_answers_by_hand(prompt, expected):
    assert answer(prompt) == expected


def test_every_task_is_known_by_hand():
    assert {read(prompt).task for prompt in KNOWN} == set(TASK_NAMES)


def test_a_prompt_reads_back_as_its_question():
    rng = random.Random(0)
    seen = Counter()
    for _ in range(2000):
        question = ask(rng, rng.sample(WORDS, rng.randint(3, 4)))
        assert read(question.prompt) == question
        seen[question.task, question.wording] += 1
    assert len(seen) == sum(len(task.wordings) for task in TASKS)


def test_wordings_are_unique():
    wordings = [wording for task in TASKS for wording in task.wordings]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize(
    ("response", "grade"),
    [
        ("cat jay koala", Grade(right=True, exact=True)),
        ("  cat  jay koala\n", Grade(right=True, exact=True)),
        ("Sure! Here you go: cat jay koala", Grade(right=True, exact=False)),
        ("Sure! Here you go: jay cat koala", Grade(right=False, exact=False)),
        ("cat jay", Grade(right=False, exact=False)),
        ("cat jay koala koala", Grade(right=False, exact=False)),
        ("Sure! Here you go:", Grade(right=False, exact=False)),
        ("", Grade(right=False, exact=False)),
    ],
)
def test_grades(response, grade):
    assert check("Sort: jay cat koala", response) == grade


def test_openings_come_off_once():
    for opening in OPENINGS:
        assert without_opening(f"{opening} cat jay") == "cat jay"
    assert without_opening(f"{OPENINGS[0]} {OPENINGS[1]} cat") == f"{OPENINGS[1]} cat"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Srt: jay cat koala", "Did you mean 'Sort'"),
        ("Sort: jay cow koala", "list of animals"),
        ("Sort", "list of animals"),
        ("What is the capital of France?", "does not start with an instruction"),
    ],
)
def test_other_text_is_refused(prompt, message):
    with pytest.raises(DataError, match=message):
        answer(prompt)


def test_the_same_world_is_the_same_bytes(files, tmp_path):
    again = write_world(tmp_path, SMALL)
    for name in ("demonstrations", "documents", "pairs", "eval_pairs", "questions"):
        assert getattr(again, name).read_bytes() == getattr(files, name).read_bytes()
    assert (again.tokenizer / "tokenizer.json").read_bytes() == (files.tokenizer / "tokenizer.json").read_bytes()
    other = write_world(tmp_path / "other", World(**{**files.summary["world"], "seed": 1}))
    assert other.pairs.read_bytes() != files.pairs.read_bytes()


def test_nothing_held_out_is_in_the_training_files(files):
    training = [row["messages"][0]["content"] for row in load(files.demonstrations)]
    training += [row["prompt"][0]["content"] for row in load(files.pairs)]
    training += [row["prompt"].removesuffix(" =") for row in load(files.documents)]
    evaluation = [row["prompt"] for row in load(files.questions)]
    evaluation += [row["prompt"][0]["content"] for row in load(files.eval_pairs)]
    assert len(training) == 1100
    assert len(evaluation) == 100
    for prompts in (training, evaluation):
        assert len(set(prompts)) == len(prompts)
    together = {frozenset(read(prompt).items) for prompt in training}
    assert together.isdisjoint(frozenset(read(prompt).items) for prompt in evaluation)
    # The rule that the files follow does not depend on order.
    assert all(held_out(read(prompt).items[::-1]) for prompt in evaluation)


def test_the_crowd_is_as_bad_as_it_says():
    world = World(chatty_rate=0.35, careless_rate=0.0, hard_slip_rate=0.7, slip_rate=0.1)
    rng = random.Random(0)
    chatty, slips = [], {True: [], False: []}
    for question in islice(questions(world, evaluation=False), 6000):
        text = crowd_answer(world, question, rng)
        chatty.append(without_opening(text) != text)
        if question.slip != question.answer:
            assert without_opening(text) in (question.slip, question.answer)
            slips[question.task in HARD].append(without_opening(text) == question.slip)
    for measured, rate in ((chatty, 0.35), (slips[True], 0.7), (slips[False], 0.1)):
        # Five standard errors.
        assert sum(measured) / len(measured) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / len(measured)) ** 0.5)


def test_the_judge_prefers_right_then_plain_and_errs_as_often_as_it_says():
    world = World(judge_error=0.2)
    rng = random.Random(0)
    wrong_way = []
    for question in islice(questions(world, evaluation=False), 3000):
        pair = judged_pair(world, question, rng)
        chosen, rejected = (check(question.prompt, text) for text in (pair.chosen, pair.rejected))
        assert sum(chosen) != sum(rejected)
        wrong_way.append(sum(chosen) < sum(rejected))
    assert sum(wrong_way) / 3000 == pytest.approx(0.2, abs=5 * (0.16 / 3000) ** 0.5)


def test_the_summary_counts_what_is_in_the_files(files):
    rows = load(files.demonstrations)
    exact = sum(check(*(message["content"] for message in row["messages"])).exact for row in rows) / len(rows)
    assert files.summary["demonstrations_exact"] == exact
    assert files.summary["world"]["pairs"] == len(load(files.pairs))


def test_questions_hold_their_answers(files):
    for row in load(files.questions):
        assert row["answer"] == answer(row["prompt"])
        assert row["task"] == read(row["prompt"]).task


def test_tokenizer_gives_the_text_back(tokenizer):
    for prompt, response in KNOWN.items():
        for text in (prompt, response, *(f"{opening} {response}" for opening in OPENINGS)):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text


def test_the_chat_template_has_the_prompt_as_prefix(tokenizer):
    messages = [{"role": "user", "content": "Sort: jay cat koala"}, {"role": "assistant", "content": "cat jay koala"}]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt == "<|bos|><|user|>Sort: jay cat koala<|end|><|assistant|>"
    assert whole == prompt + "cat jay koala<|end|>"


def test_documents_have_no_chat_format(files, tokenizer):
    documents, report = load_examples(str(files.documents), tokenizer, layout="single", max_length=32)
    assert len(documents) == 200, report.as_dict()
    row = load(files.documents)[0]
    assert tokenizer.decode(documents[0].prompt) == row["prompt"]
    assert tokenizer.decode(documents[0].completions[0]) == f"{row['completion']}<|end|>"


def test_the_files_keep_the_data_contract(files, tokenizer):
    singles, report = load_examples(str(files.demonstrations), tokenizer, layout="single", max_length=32)
    assert len(singles) == 600, report.as_dict()
    pairs, report = load_examples(str(files.pairs), tokenizer, layout="paired", max_length=32)
    assert len(pairs) == 300, report.as_dict()
    example = pairs[0]
    row = load(files.pairs)[0]
    texts = [tokenizer.decode(ids) for ids in (example.prompt, *example.completions)]
    assert texts == [
        f"<|bos|><|user|> {row['prompt'][0]['content']}<|end|><|assistant|>",
        f"{row['chosen'][0]['content']}<|end|>",
        f"{row['rejected'][0]['content']}<|end|>",
    ]
    counted = report.as_dict()
    assert counted["truncation"] == {"prompt_cut": 0, "completion_cut": 0, "eos_lost": 0, "tokens_cut": 0}
    assert counted["boundary"]["differ"] == 0
    assert counted["dropped"] == {}


def test_the_vocabulary_is_of_the_training_text_alone():
    tokenizer = train_tokenizer(["Sort: jay cat", "cat jay"])
    assert len(tokenizer) == 6 + 3
    assert tokenizer("Sort: koala", add_special_tokens=False).input_ids[1] == tokenizer.unk_token_id
