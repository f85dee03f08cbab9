"""Which of another model's examples stands beside which of the policy's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxalign.build.data import check_data
from jaxalign.build.model import settled
from jaxalign.build.reference_views import _aligned, reference_views
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import DataError
from tests.build.conftest import written_pairs


def test_each_answer_of_a_pair_meets_itself_when_the_other_is_dropped(configure, world):
    config = settled(
        configure(
            method__name="kto",
            reference__source=str(world.foreign),
            data__eval_size=4,
            data__max_length=31,
            data__truncation="drop",
        )
    )
    data = check_data(config)
    views = reference_views(config, data, steps=1)
    theirs, alone = load_tokenizer(world.foreign), 0
    texts = {f"{pair['prompt']}{pair[name]}" for pair in written_pairs() for name in ("chosen", "rejected")}
    for name, (examples, _) in data.sets.items():
        rows = [source.rpartition(", ")[0] for source in examples.sources]
        alone += sum(s.endswith("answer 2") and rows.count(r) == 1 for s, r in zip(examples.sources, rows, strict=True))
        assert len(views[name].examples) == len(examples)
        for one, other in zip(examples, views[name].examples, strict=True):
            said = [
                tokenizer.decode(np.concatenate([example.prompt, *example.completions]), skip_special_tokens=True)
                for tokenizer, example in ((data.tokenizer, one), (theirs, other))
            ]
            assert said[0] == said[1]
            assert said[0] in texts
            assert one.columns["desirable"] == other.columns["desirable"]
    assert alone > 0  # rejected answers whose chosen one did not fit


def test_a_column_made_of_the_whole_set_need_not_be_read_again(configure):
    """The policy's examples carry the weights of bco_udm, which are made of all prompts at once."""
    examples = check_data(settled(configure(method__name="bco"))).train
    weighed = {**examples.columns, "density_ratios": np.ones(len(examples), np.float32)}
    aligned = _aligned(dataclasses.replace(examples, columns=weighed), examples[::-1], "other")
    assert aligned.sources == examples.sources


def test_other_labels_are_refused(configure):
    examples = check_data(settled(configure(method__name="kto"))).train
    flipped = dataclasses.replace(examples, columns={"desirable": ~examples.columns["desirable"]})
    with pytest.raises(DataError, match=f"answer 1: desirable differs .* {len(examples[::2])} examples"):
        _aligned(examples[::2], flipped, "other")
