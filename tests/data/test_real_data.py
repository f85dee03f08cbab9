"""Published data sets load as they are, under the strict default."""

from __future__ import annotations

import pytest

from jaxalign.data.examples import load_examples

# file: (layout, options, rows, left out by reason, noted)
SETS = {
    "pref-polite/pairs.json.gz": ("paired", {}, 1100, {"identical pair": 6}, {}),
    "pref-ultrafeedback/train.jsonl.gz": (
        "paired",
        {},
        1000,
        {"special token in text": 4, "identical pair": 4, "empty answer": 2},
        {"prompt and answer joined without white space": 914},
    ),
    "pref-hh-harmless/test.jsonl.gz": ("paired", {}, 1730, {"empty answer": 4}, {}),
    "pref-orca-dpo/validation.jsonl.gz": ("paired", {"chat_template": "chatml"}, 284, {}, {}),
    "pref-demo-dpo-kto/dpo_en_demo.jsonl.gz": ("paired", {"chat_template": "chatml"}, 300, {}, {"duplicate row": 5}),
    "pref-demo-dpo-kto/kto_en_demo.jsonl.gz": (
        "unpaired",
        {"chat_template": "chatml"},
        300,
        {"special token in text": 1},
        {},
    ),
    "sft-chat-demos/dummy_conversation.jsonl.gz": ("single", {"chat_template": "chatml"}, 500, {}, {}),
    "sft-chat-demos/glaive_toolcall_en_demo.jsonl.gz": (
        "single",
        {"chat_template": "chatml"},
        300,
        {},
        {"duplicate row": 38, "tools that the chat template does not show": 191},
    ),
    "sft-chat-demos/identity.jsonl.gz": ("single", {}, 91, {}, {}),
    "sft-instructions-1100/instruction-data.json.gz": ("single", {}, 1100, {}, {}),
    "sft-self-instruct/seed_tasks.jsonl": ("single", {}, 175, {}, {}),
    "sft-self-instruct/user_oriented_instructions.jsonl": ("single", {}, 252, {}, {}),
}


@pytest.mark.parametrize("name", SETS)
def test_published_sets(name, shared_data, stories):
    layout, options, rows, dropped, notes = SETS[name]
    examples, report = load_examples(shared_data / name, stories, layout=layout, **options)
    assert report.rows == rows
    assert report.dropped == dropped
    assert report.notes == notes
    assert len(examples) == report.examples == rows - sum(dropped.values())
    assert report.truncation["tokens_cut"] == 0
    bos, eos = stories.bos_token_id, stories.eos_token_id
    for example in examples:
        assert example.prompt[0] == bos
        assert (example.prompt == bos).sum() == 1
        for ids in example.completions:
            assert ids[-1] == eos
            assert (ids == eos).sum() == 1


def test_polite_pairs_lose_nothing_to_512_tokens(shared_data, stories):
    path = shared_data / "pref-polite" / "pairs.json.gz"
    examples, report = load_examples(path, stories, max_length=512, vocabulary=512, max_positions=512)
    assert report.truncation == {"prompt_cut": 0, "completion_cut": 0, "eos_lost": 0, "tokens_cut": 0}
    assert report.lengths["longest sequence"] == 317
    assert report.boundary["differ"] == 0
    said = stories.decode(examples[0].completions[0])
    assert said == 'The spelling of the given phrase "freind" is incorrect, the correct spelling is "friend".</s>'


def test_long_dialogues_are_cut_and_counted(shared_data, stories):
    path = shared_data / "pref-hh-harmless" / "test.jsonl.gz"
    whole, _ = load_examples(path, stories)
    examples, report = load_examples(path, stories, max_length=512)
    assert report.lengths["longest sequence"] == 512
    assert report.truncation["tokens_cut"] == len(whole.tokens) - len(examples.tokens) > 0
    ended = sum(c[-1] == stories.eos_token_id for e in examples for c in e.completions)
    lost = sum(any(c[-1] != stories.eos_token_id for c in e.completions) for e in examples)
    assert report.truncation["eos_lost"] == lost
    assert ended < 2 * len(examples)
    assert all(stories.decode(e.prompt).endswith("\n\nAssistant:") for e in examples)
