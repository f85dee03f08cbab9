"""The order of examples: a pure function of (seed, step), exact on resume, whole every epoch."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.data.pipeline import OrderedBatches, Packer, ShuffledBatches, ordered_iterator, training_iterator
from jaxalign.data.records import Example, ExampleSet
from jaxalign.data.row_plans import RowProgram, RowShape


@pytest.fixture
def examples():
    generator = np.random.default_rng(0)
    return ExampleSet.from_examples(
        Example(
            prompt=generator.integers(3, 50, generator.integers(1, 9)),
            completions=(generator.integers(3, 50, generator.integers(1, 9)),),
            columns={"desirable": bool(i % 3)},
            source=f"row {i}",
        )
        for i in range(23)
    )


PACKER = Packer([RowProgram(4, RowShape(48, 32, 4, 1))], 2, column_names=("desirable",))


def test_every_epoch_shows_every_example_once_in_another_order(examples):
    batches = ShuffledBatches(examples, batch_size=4, seed=1)
    seen = [pair for step in range(23) for pair in batches.ids(step)]  # 92 places = 4 epochs
    orders = [[identity for e, identity in seen if e == epoch] for epoch in range(4)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert batches.ids(7) == ShuffledBatches(examples, batch_size=4, seed=1).ids(7)
    assert batches.ids(7) != ShuffledBatches(examples, batch_size=4, seed=2).ids(7)


def test_resuming_the_iterator_is_exact(examples):
    batches = ShuffledBatches(examples, batch_size=4, seed=3)

    def batch_bytes(batch):
        return batch.rows.tokens.tobytes(), batch.rows.columns["example_id"].tobytes(), batch.example_ids

    whole = [batch_bytes(b) for b in training_iterator(batches, PACKER, 12)]
    assert len(whole) == 12
    first = training_iterator(batches, PACKER, 12)
    for _ in range(5):
        next(first)
    state = first.get_state()
    second = training_iterator(batches, PACKER, 12)
    second.set_state(state)
    assert [batch_bytes(b) for b in second] == whole[5:]


def test_processes_together_write_the_whole_batch(examples):
    batches = ShuffledBatches(examples, batch_size=8, seed=3)
    whole = PACKER(batches(0))
    parts = [
        Packer(
            PACKER.programs,
            2,
            column_names=("desirable",),
            local_rows=lambda rows, p=p: slice(p * rows // 2, (p + 1) * rows // 2),
        )(batches(0))
        for p in range(2)
    ]
    assert [p.first_row for p in parts] == [0, whole.global_rows // 2]
    np.testing.assert_array_equal(np.concatenate([p.rows.tokens for p in parts]), whole.rows.tokens)
    np.testing.assert_array_equal(
        np.concatenate([p.rows.columns["example_id"] for p in parts]), whole.rows.columns["example_id"]
    )


def test_an_ordered_pass_shows_each_example_once(examples):
    ids = [i for batch in ordered_iterator(OrderedBatches(examples, batch_size=5), PACKER) for i in batch.example_ids]
    assert ids == list(range(23))


def test_mismatched_partners_are_never_the_example_and_change_every_epoch(examples):
    batches = ShuffledBatches(examples, batch_size=23, seed=5, mismatched=True)
    partners = []
    for epoch in range(3):
        shown = dict(batches(epoch))
        assert sorted(shown) == list(range(23))
        for i, example in shown.items():
            own, other = example.completions
            np.testing.assert_array_equal(own, examples[i].completions[0])
            np.testing.assert_array_equal(example.prompt, examples[i].prompt)
            ring = batches._ring(epoch)
            assert ring[i] != i
            np.testing.assert_array_equal(other, examples[int(ring[i])].completions[0])
        partners.append(tuple(batches._ring(epoch)))
        assert sorted(partners[-1]) == list(range(23))
    assert len(set(partners)) == 3


def test_mismatched_partners_have_another_prompt_and_another_completion():
    """Pairs made unpaired, and answers that many prompts share."""
    generator = np.random.default_rng(2)
    both = ExampleSet.from_examples(
        Example(np.array([i // 2 + 1]), (generator.integers(3, 6, 2),), {"desirable": i % 2 == 0}) for i in range(60)
    )
    batches = ShuffledBatches(both, batch_size=60, seed=0, mismatched=True)
    for epoch in range(20):
        partners = batches._ring(epoch)
        assert sorted(partners) == list(range(60))
        for i, partner in enumerate(partners):
            assert both[i].prompt.tolist() != both[int(partner)].prompt.tolist()
            assert both[i].completions[0].tolist() != both[int(partner)].completions[0].tolist()
    alike = ExampleSet.from_examples(Example(np.array([1]), (np.array([2]),)) for _ in range(9))
    partners = ShuffledBatches(alike, batch_size=3, seed=0, mismatched=True)._ring(0)
    assert sorted(partners) == list(range(9))
    assert (partners != np.arange(9)).all()


def test_one_example_has_no_partner(examples):
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        ShuffledBatches(examples[:1], batch_size=1, seed=0, mismatched=True)
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        OrderedBatches(examples[:1], batch_size=1, mismatched=True)


def test_attached_columns_ride_along(examples):
    def attach(epoch, identity):
        return {
            "reference_logps": tuple(np.full(len(c), -100.0 * epoch - identity) for c in examples[identity].completions)
        }

    packer = Packer(PACKER.programs, 2, column_names=("desirable", "reference_logps"))
    rows = packer(OrderedBatches(examples, batch_size=5, attach=attach)(1)).rows
    total = 0
    for r, e in np.argwhere(rows.example_mask):
        slots = rows.score_slot[r] == e
        values = rows.columns["reference_logps"][r][slots]
        np.testing.assert_array_equal(values, -float(rows.columns["example_id"][r, e]))
        total += slots.sum()
    assert total == sum(len(examples[i].completions[0]) for i in range(5, 10))
    later = dict(ShuffledBatches(examples, batch_size=23, seed=0, attach=attach)(2))
    assert later[7].columns["reference_logps"][0][0] == -207.0
