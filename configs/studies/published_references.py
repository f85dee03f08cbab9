"""The published numbers of study 2 (arXiv 2407.13709v2), each read in its table."""

from collections.abc import Iterator
from typing import Any

from jaxalign.studies.study import Published

SOURCE = "arXiv 2407.13709v2, table {}"
BETAS = (0.1, 0.05, 0.02, 0.01, 0.005)
OTHER_BETAS = (10.0, 1.0, 0.1, 0.01, 0.005)
"""With other references."""
WIN_RATE = "AlpacaEval 2 length-controlled win rate"
BY_REWARD = "ranking accuracy of the reward"
BY_POLICY = "ranking accuracy of the policy"
LENGTH = "mean length of AlpacaEval outputs"
OURS = {
    WIN_RATE: "alpaca_eval/length_controlled_win_rate",
    BY_REWARD: "held_out/rewards/accuracies",
    BY_POLICY: "held_out/ranking/accuracy",
}
"""Our measurement of the same quantity; ours of AlpacaEval outputs are characters, so lengths have none."""
UNITS = {WIN_RATE: "%", BY_REWARD: "share", BY_POLICY: "share", LENGTH: "tokens"}
TABLE_1 = {
    "mistral-7b": (14.03, 13.29, 16.06, 16.25, 12.36),
    "tulu-2-7b": (9.38, 9.96, 10.46, 7.86, None),
}
"""Of `BETAS`, DPO against itself."""
SFT_ALONE = {"mistral-7b": 7.57, "tulu-2-7b": 8.50}
TABLE_2 = {
    "mistral-7b": ((0.718, 0.495), (0.744, 0.513), (0.746, 0.544), (0.751, 0.605), (0.766, 0.704)),
    "tulu-2-7b": ((0.773, 0.462), (0.778, 0.483), (0.766, 0.536), (0.758, 0.605), (0.750, 0.680)),
}
"""Of `BETAS`: how often the reward, and the policy itself, ranks a pair right."""
SFT_RANKING = {"mistral-7b": (0.500, 0.435), "tulu-2-7b": (0.500, 0.439)}
"""Of the starts; their reward is 0 throughout, so that it ranks by chance."""
TABLE_3 = {
    ("dpo", "self", 0.01): (16.25, 0.605, 359.4),
    ("probability", "none", 100.0): (12.84, 0.697, 744.5),
    ("likelihood", "prior", 0.01): (13.63, 0.602, 389.3),
}
"""Of mistral-7b, each objective at its best beta: win rate, ranking accuracy of the policy, length."""
ORIGINAL = (0.435, 205.0)
"""The last two of the start."""
TABLE_4 = {
    ("mistral-7b", "mistral-v0.2"): (18.74, 20.25, 19.58, 17.18, 15.34),
    ("mistral-7b", "llama-3-70b"): (13.29, 9.59, 10.99, 15.37, 11.70),
    ("tulu-2-7b", "mistral-v0.2"): (7.61, 7.85, None, None, None),
    ("tulu-2-7b", "llama-3-70b"): (9.79, 11.17, 10.31, 9.16, 3.29),
}
"""Of `OTHER_BETAS`; None = degenerate."""
TABLE_6 = (4.75, 5.00, 5.89, 4.91, 5.52, None)
TABLE_7 = (15.20, 16.75, 14.99, 15.07, 14.80)


def published() -> Iterator[Published]:
    """The paper's numbers."""

    def row(start: str, objective: str, reference: str, beta: float) -> dict[str, Any]:
        return {"start": start, "method": "dpo", "objective": objective, "reference": reference, "beta": beta}

    def number(labels: dict[str, Any], value: float | None, table: int, metric: str = WIN_RATE) -> Published:
        return Published(
            labels=labels,
            metric=metric,
            value=value,
            source=SOURCE.format(table),
            ours=OURS.get(metric),
            unit=UNITS[metric],
        )

    for start, values in TABLE_1.items():
        yield number({"start": start, "method": "none"}, SFT_ALONE[start], 1)
        for beta, value in zip(BETAS, values, strict=True):
            yield number(row(start, "dpo", "self", beta), value, 1)
    for start, pairs in TABLE_2.items():
        for value, metric in zip(SFT_RANKING[start], (BY_REWARD, BY_POLICY), strict=True):
            yield number({"start": start, "method": "none"}, value, 2, metric)
        for beta, (reward, policy) in zip(BETAS, pairs, strict=True):
            yield number(row(start, "dpo", "self", beta), reward, 2, BY_REWARD)
            yield number(row(start, "dpo", "self", beta), policy, 2, BY_POLICY)
    for value, metric in zip(ORIGINAL, (BY_POLICY, LENGTH), strict=True):
        yield number({"start": "mistral-7b", "method": "none"}, value, 3, metric)
    for (objective, reference, beta), values in TABLE_3.items():
        for value, metric in zip(values, (WIN_RATE, BY_POLICY, LENGTH), strict=True):
            if (objective, metric) != ("dpo", WIN_RATE):  # in table 1 already
                yield number(row("mistral-7b", objective, reference, beta), value, 3, metric)
    for (start, reference), values in TABLE_4.items():
        for beta, value in zip(OTHER_BETAS, values, strict=True):
            yield number(row(start, "dpo", reference, beta), value, 4)
    yield number({"start": "mistral-v0.2", "method": "none"}, 20.55, 4)
    yield number({"start": "qwen2-1.5b", "method": "none"}, 4.82, 6)
    for beta, value in zip((*BETAS, 0.001), TABLE_6, strict=True):
        yield number(row("qwen2-1.5b", "dpo", "self", beta), value, 6)
    for beta, value in zip(OTHER_BETAS, TABLE_7, strict=True):
        yield number(row("mistral-7b", "dpo", "dpo", beta), value, 7)
