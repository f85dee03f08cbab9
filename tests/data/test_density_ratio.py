"""The classifier behind the weights of ``bco_udm``."""

import numpy as np
import pytest

from jaxalign.data.density_ratio import prompt_density_ratios
from jaxalign.errors import DataError


def prompts_about(rng, topic, count):
    """Each prompt: 6 of the 20 words of its topic, and 4 of 20 that both have."""
    return [
        np.concatenate([rng.integers(20 * topic, 20 * topic + 20, 6), rng.integers(40, 60, 4)]) for _ in range(count)
    ]


def test_prompts_of_the_other_kind_weigh_more():
    """Wanted completions come from topic 0, of the unwanted ones a third: a prompt of topic 0 is 3 times as likely
    among the wanted, one of topic 1 never is. The classifier's penalty draws its ratios from there towards 1."""
    rng = np.random.default_rng(0)
    prompts = prompts_about(rng, 0, 150) + prompts_about(rng, 0, 50) + prompts_about(rng, 1, 100)
    ratios = prompt_density_ratios(prompts, np.arange(300) < 150)
    assert ratios.shape == (300,)
    assert ratios.dtype == np.float32
    assert ratios[:200].min() > ratios[200:].max()
    assert 1.0 < ratios[150:200].mean() < 3.0
    np.testing.assert_allclose(ratios[200:], 0.5, rtol=0.2)
    assert ratios.min() >= 0.5


def test_equal_prompts_have_ratios_of_one():
    """The same prompts with either label, however unequal in number: both labels weigh the same."""
    prompts = prompts_about(np.random.default_rng(1), 0, 20)
    labels = [True] * 20 + [False] * 60
    np.testing.assert_allclose(prompt_density_ratios(prompts * 4, labels), 1.0, atol=1e-3)


def test_the_bounds_and_the_seed():
    rng = np.random.default_rng(2)
    prompts = prompts_about(rng, 0, 60) + prompts_about(rng, 1, 60)
    labels = np.arange(120) < 60
    tight = prompt_density_ratios(prompts, labels, smallest=0.9, largest=1.1)
    np.testing.assert_allclose(tight, np.where(labels, 1.1, 0.9), rtol=1e-6)
    few = [prompt_density_ratios(prompts, labels, sample=10, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert (few[0] != few[2]).any()


def test_a_long_prompt_and_an_empty_one_are_fine():
    ratios = prompt_density_ratios([[1, 1, 1, 1, 2], [], [3], [3, 4]], [True, True, False, False])
    assert np.isfinite(ratios).all()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([True, True], "all 2 examples are desirable"),
        ([False, False], "all 2 examples are undesirable"),
        ([True], "got 2 prompts and 1 labels"),
    ],
)
def test_nothing_to_compare(labels, problem):
    with pytest.raises(DataError, match=problem):
        prompt_density_ratios([[1], [2]], labels)
