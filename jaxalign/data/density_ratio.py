"""How typical a prompt is of wanted completions rather than unwanted ones: the weights of ``bco_udm``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.errors import ConfigError, DataError

SAMPLE = 1024  # prompts of each label that the classifier sees: TRL's default


def prompt_density_ratios(
    prompts: Sequence[np.ndarray | Sequence[int]],
    desirable: Sequence[bool] | np.ndarray,
    *,
    others: Sequence[np.ndarray | Sequence[int]] = (),
    sample: int = SAMPLE,
    smallest: float = 0.5,
    largest: float = 10.0,
    seed: int = 0,
) -> np.ndarray:
    """The density of the wanted completions' prompts over that of the unwanted ones', at each prompt.

    A logistic classifier learns, from the tokens of a prompt (their counts, weighted by how rare they are), with which
    label it comes, both labels weighing the same; of its probability p of "desirable" the ratio is ``p / (1 - p)``.
    BCO's authors and TRL do the same with the vectors of an embedding model, which sees meaning as well as words.

    Args:
      prompts: token ids of each example's prompt.
      desirable: the label of each example.
      others: further prompts, of which the classifier learns nothing: held-out ones.
      sample: the classifier learns from up to so many prompts of each label, drawn without replacement.
      smallest: lower bound of the ratios.
      largest: upper bound of the ratios.
      seed: of the draw.

    Returns:
      One ratio an example, float32, in the order of the examples, the others behind them.

    Raises:
      DataError: prompts and labels are not equally many, or all labels are alike.
      ConfigError: scikit-learn is not installed.

    References:
      Jung et al. 2024, arXiv 2404.04656; the sample size and the bounds are TRL's.
    """
    labels = np.asarray(desirable, bool)
    if len(labels) != len(prompts):
        raise DataError(f"density ratios: got {len(prompts)} prompts and {len(labels)} labels, expected as many.")
    if labels.all() or not labels.any():
        kind = "desirable" if labels.any() else "undesirable"
        raise DataError(
            f"density ratios: all {len(labels)} examples are {kind}, expected both kinds. There is nothing to compare; "
            "use the method bco."
        )
    try:
        from scipy.sparse import csr_array
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ConfigError(
            "density ratios need the package scikit-learn. Install it with: pip install 'jaxalign[density]'"
        ) from error

    everyone = [*prompts, *others]
    starts = np.cumsum([0, *(len(prompt) for prompt in everyone)])
    tokens = np.concatenate([np.asarray(prompt, np.int64) for prompt in everyone])
    # The ids as they come: columns of a sparse matrix, where a token that occurs twice adds up.
    counts = csr_array((np.ones(len(tokens)), tokens, starts), shape=(len(everyone), int(tokens.max(initial=0)) + 1))
    counts.sum_duplicates()

    rng = np.random.default_rng(seed)
    seen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:sample] for label in (True, False)])
    classifier = make_pipeline(TfidfTransformer(), LogisticRegression(class_weight="balanced", max_iter=1000))
    classifier.fit(counts[seen], labels[seen])
    # p / (1 - p) is the exponential of the logit; its bounds are applied first, so that nothing overflows.
    logits = np.clip(classifier.decision_function(counts), np.log(smallest), np.log(largest))
    return np.exp(logits).astype(np.float32)
