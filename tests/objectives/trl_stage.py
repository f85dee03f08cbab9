"""A stage on which TRL's own loss functions run: models that are tables, and trainers that hold just what they read.

Needs torch and TRL, so tests import it in a fixture. It knows both forms of TRL's trainers: up to 1.14 they take the
log-softmax of a model's logits themselves, from 1.15 on the model gives them log-probabilities.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

VERSION = tuple(int(part) for part in importlib.metadata.version("trl").split(".")[:2])
Result = tuple[float, np.ndarray]


class Tokens(NamedTuple):
    """Log-probabilities of completions' tokens; of pairs, the chosen completions stand before the rejected ones.

    Attributes:
      policy: ``[R, N]`` float32, anything below 0 behind a completion's last token.
      reference: the same of the reference policy.
      lengths: ``[R]``.
    """

    policy: np.ndarray
    reference: np.ndarray
    lengths: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return np.arange(self.policy.shape[1]) < self.lengths[:, None]


class Table:
    """A model of two words. The first token of a row says which of the table's rows are its log-probabilities.

    The logits are ``log p`` of word 1, which every completion repeats, and ``log(1 - p)`` of word 0. They are
    normalised and keep both gradients, so the gradient of the log-softmax with respect to the table is exactly 1.
    """

    training = True
    is_gradient_checkpointing = False

    def __init__(self, table: torch.Tensor):
        self.table = table

    def __call__(
        self, input_ids: torch.Tensor, *_: Any, labels: torch.Tensor | None = None, **__: Any
    ) -> SimpleNamespace:
        logps = self.table[input_ids[:, 0], : input_ids.shape[1] - 1]
        words = torch.stack([torch.log(-torch.expm1(logps)), logps], -1)
        mask = torch.ones_like(logps, dtype=torch.bool) if labels is None else labels[:, 1:] != -100
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            logits=torch.cat([words, torch.zeros_like(words[:, :1])], 1),
            log_probs=torch.where(mask, torch.log_softmax(words, -1)[..., 1], zeros),
            log_sum_sq_probs=torch.where(mask, torch.logsumexp(2.0 * words.detach(), -1), zeros),
            label_mask=mask,
            entropy=zeros.detach(),
            mean_logits=zeros.detach(),
            is_top1=torch.zeros_like(mask),
        )


ACCELERATOR = SimpleNamespace(
    device="cpu",
    num_processes=1,
    parallelism_config=None,
    use_distributed=False,
    gather=lambda value: value,
    gather_for_metrics=lambda value: value,
)


def trainer(cls: type, **attributes: Any) -> Any:
    """An object of TRL's class that was never initialised, so that all its methods are TRL's."""
    made = cls.__new__(cls)
    common = {
        "accelerator": ACCELERATOR,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "precompute_ref_logps": False,
        "use_liger_kernel": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in {**common, **attributes}.items():
        setattr(made, name, value)
    return made


def leaf(values: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def result(loss: torch.Tensor, variable: torch.Tensor) -> Result:
    return loss.item(), torch.autograd.grad(loss, variable)[0].double().numpy()


def rows(tokens: Tokens, first: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    """The rows as TRL's collators have them: a prompt of one token, then the completion, 0 behind it."""
    mask = torch.tensor(tokens.mask).long()
    prompt = torch.arange(first, first + len(mask))[:, None]
    one = torch.ones_like(prompt)
    return {
        f"{prefix}input_ids": torch.cat([prompt, mask], 1),
        f"{prefix}attention_mask": torch.cat([one, mask], 1),
        f"{prefix}completion_mask": torch.cat([0 * one, mask], 1),
    }


def labels(batch: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    return batch[f"{prefix}input_ids"].masked_fill(batch[f"{prefix}completion_mask"] == 0, -100)


def dpo(
    tokens: Tokens,
    *,
    loss_types: dict[str, float],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
    discopop_tau: float = 0.05,
) -> Result:
    """`DPOTrainer._compute_loss`, of `loss_types` with their weights, and its gradient, ``[R, N]``."""
    from trl.trainer.dpo_trainer import DPOTrainer

    # Its alpha divergence knows how far exp reaches in float32 and below only.
    dtype = torch.float32 if f_divergence_type == "alpha_divergence" else torch.float64
    policy = leaf(tokens.policy, dtype)
    self = trainer(
        DPOTrainer,
        model=Table(policy),
        ref_model=Table(torch.tensor(tokens.reference, dtype=dtype)),
        args=SimpleNamespace(discopop_tau=discopop_tau, gradient_checkpointing_kwargs=None),
        loss_types=list(loss_types),
        loss_weights=list(loss_types.values()),
        beta=beta,
        label_smoothing=label_smoothing,
        f_divergence_type=f_divergence_type,
        f_alpha_divergence_coef=f_alpha_divergence_coef,
        ld_alpha=ld_alpha,
        use_weighting=use_weighting,
    )
    return result(self._compute_loss(self.model, rows(tokens), False), policy)


def kto(
    tokens: Tokens,
    mismatched: Tokens,
    desirable: np.ndarray,
    *,
    loss_type: str,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Result:
    """`KTOTrainer._compute_loss` and its gradient, ``[R, N]``; rows of `mismatched` are those of the KL estimate."""
    from trl.trainer.kto_trainer import KTOTrainer

    policy = leaf(np.concatenate([tokens.policy, mismatched.policy]))
    reference = torch.tensor(np.concatenate([tokens.reference, mismatched.reference])).double()
    self = trainer(
        KTOTrainer,
        model=Table(policy),
        ref_model=Table(reference),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    batch = rows(tokens) | rows(mismatched, len(tokens.lengths), "KL_") | {"label": torch.tensor(desirable)}
    loss, gradient = result(self._compute_loss(self.model, batch, False), policy)
    assert not gradient[len(tokens.lengths) :].any()
    return loss, gradient[: len(tokens.lengths)]


def _sides(tokens: Tokens, prompt: int = 0) -> dict[str, torch.Tensor]:
    """The batch of the older trainers, which join chosen and rejected rows themselves.

    The first `prompt` tokens of each row belong to its prompt.
    """
    batch = rows(tokens)
    batch["labels"] = labels(batch)
    batch["labels"][:, 1 : 1 + prompt] = -100
    return {
        f"{side}_{name}": value
        for name, joined in batch.items()
        if name != "completion_mask"
        for side, value in zip(("chosen", "rejected"), joined.chunk(2), strict=True)
    }


def cpo(
    tokens: Tokens,
    *,
    loss_type: str,
    beta: float,
    cpo_alpha: float = 0.0,
    alpha: float = 0.0,
    simpo_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Result:
    """`CPOTrainer.get_batch_loss_metrics`: CPO, SimPO, CPO-SimPO, AlphaPO; and its gradient, ``[R, N]``."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    policy = leaf(tokens.policy)
    self = trainer(
        CPOTrainer,
        pad_token_id=0,
        loss_type=loss_type,
        beta=beta,
        cpo_alpha=cpo_alpha,
        alpha=alpha,
        simpo_gamma=simpo_gamma,
        label_smoothing=label_smoothing,
    )
    return result(self.get_batch_loss_metrics(Table(policy), _sides(tokens))[0], policy)


def orpo(tokens: Tokens, *, beta: float, prompt: int = 0) -> Result:
    """`ORPOTrainer.get_batch_loss_metrics` and its gradient, ``[R, N]``; the first `prompt` tokens are the prompt's."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    policy = leaf(tokens.policy)
    self = trainer(ORPOTrainer, padding_value=0, beta=beta)
    return result(self.get_batch_loss_metrics(Table(policy), _sides(tokens, prompt))[0], policy)


def tpo(
    tokens: Tokens,
    *,
    loss_type: str,
    beta: float,
    tpo_alpha: float,
    tpo_l_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Result:
    """`TPOTrainer._compute_loss`; the rows are the second, the worst and the best completions."""
    from trl.experimental.tpo.tpo_trainer import TPOTrainer

    policy = leaf(tokens.policy)
    self = trainer(
        TPOTrainer,
        model=Table(policy),
        loss_type=loss_type,
        beta=beta,
        tpo_alpha=tpo_alpha,
        tpo_l_gamma=tpo_l_gamma,
        label_smoothing=label_smoothing,
    )
    return result(self._compute_loss(self.model, rows(tokens), False), policy)


def sft(tokens: Tokens, *, loss_type: str) -> Result:
    """`SFTTrainer`'s loss and its gradient, ``[R, N]``."""
    from trl.trainer import sft_trainer

    policy = leaf(tokens.policy)
    batch = rows(tokens)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"labels": labels(batch)}
    if hasattr(sft_trainer, "dft_loss"):  # up to 1.14, where "nll" is the model's own loss
        assert loss_type == "dft"
        return result(sft_trainer.dft_loss(Table(policy)(batch["input_ids"]), inputs["labels"]), policy)
    self = trainer(
        sft_trainer.SFTTrainer,
        model=Table(policy),
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False),
        compute_loss_func=None,
        label_smoother=None,
    )
    return result(self.compute_loss(self.model, inputs), policy)


def reward_model(rewards: np.ndarray, margin: np.ndarray | None, coefficient: float | None) -> Result:
    """`RewardTrainer.compute_loss` and its gradient, ``[2 B]``."""
    from trl.trainer.reward_trainer import RewardTrainer

    values = leaf(rewards)

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=values[:, None])

    self = trainer(
        RewardTrainer,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
    )
    inputs = {"attention_mask": torch.ones(len(rewards), 1)}
    if margin is not None:
        inputs["margin"] = torch.tensor(margin)
    return result(self.compute_loss(model, inputs), values)


class Bco:
    """`BCOTrainer.bco_loss`, batch after batch, with its running mean."""

    def __init__(self, *, beta: float, match_underlying_distribution: bool):
        from trl.experimental.bco.bco_trainer import BCOTrainer, RunningMoments

        self.trainer = trainer(
            BCOTrainer,
            args=SimpleNamespace(min_density_ratio=0.5, max_density_ratio=10.0),
            running=RunningMoments(ACCELERATOR),
            beta=beta,
            # What its property match_underlying_distribution looks at.
            embedding_func=match_underlying_distribution or None,
            embedding_tokenizer=match_underlying_distribution or None,
            # The share of desirable prompts is what its classifier says; here it is given.
            _get_chosen_prob=lambda probabilities: probabilities,
        )

    def __call__(
        self, policy: np.ndarray, reference: np.ndarray, desirable: np.ndarray, probabilities: np.ndarray
    ) -> Result:
        lp, lr, given = leaf(policy), torch.tensor(reference).double(), torch.tensor(probabilities)
        yes, no = torch.tensor(desirable), torch.tensor(~desirable)
        losses = self.trainer.bco_loss(lp[yes], lp[no], lr[yes], lr[no], given[yes], given[no])[0]
        return result(losses.mean(), lp)


def process_reward_model(logits: np.ndarray, step_lengths: list[list[int]], marks: list[list[bool]]) -> Result:
    """The loss of a token classifier, as transformers has it, on the labels that `PRMTrainer` makes of steps."""
    from transformers.loss.loss_utils import ForTokenClassification
    from trl.experimental.prm.prm_trainer import PRMTrainer

    class Words:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1] * len(text.split())}

        def encode(self, text: str, **_: Any) -> list[int]:
            return [2]

    values, made = leaf(logits), torch.full(logits.shape[:2], -100)
    for row, lengths, right in zip(made, step_lengths, marks, strict=True):
        steps = {"prompt": "", "completions": ["word " * (n - 1) for n in lengths], "labels": right}
        found = PRMTrainer.tokenize_row(steps, Words(), "\n", None, None, False, False)["labels"]
        row[: len(found)] = torch.tensor(found)
    config = SimpleNamespace(num_labels=2)
    return result(ForTokenClassification(values, made, config), values)
