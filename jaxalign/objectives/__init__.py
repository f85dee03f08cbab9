"""The mathematics of alignment: every method is one pure function.

Positional parameters name what a method needs, keyword-only parameters are its options, and the result is a
`jaxalign.types.LossOutput` of per-example losses, weights and metrics; nothing is averaged here. `jaxalign.methods`
reads inputs and options from these signatures, so nothing about a method is declared twice.

Symbols in the formulas: ``lp`` is the policy's log-probability of a completion given its prompt and ``lr`` the
reference's, both summed over the completion's scored tokens (nats); ``avg.lp`` and ``avg.lr`` are the same divided by
the number of tokens; ``w`` and ``l`` mark the chosen and the rejected completion; ``rho = lp - lr``.
"""

from jaxalign.objectives.batch_coupled import aot, aot_unpaired, bco_pair, beta_dpo, kto_pair
from jaxalign.objectives.margins import discopop, exo, probability, robust_dpo, rso
from jaxalign.objectives.odds import asft, asft_tempered, orpo
from jaxalign.objectives.paired import dpo, ipo
from jaxalign.objectives.pointwise import apo_down, apo_zero, cal_dpo, nca_pair, sppo, sppo_soft
from jaxalign.objectives.process_reward import process_reward_model
from jaxalign.objectives.ranges import Range
from jaxalign.objectives.ranked import exo_list, info_nca, nca, plackett_luce, sppo_ranked
from jaxalign.objectives.ranked_reference_free import rrhf, tpo, tpo_l
from jaxalign.objectives.reference_free import alphapo, cpo, cpo_simpo, simpo, slic_hf
from jaxalign.objectives.reward_model import (
    eurus_reward_model,
    reward_model,
    reward_model_margin,
    reward_model_ranked,
)
from jaxalign.objectives.self_supervised import spo
from jaxalign.objectives.shaped import chi_po, dpop, f_dpo, h_dpo, r_dpo
from jaxalign.objectives.supervised import dft, nll, sft
from jaxalign.objectives.token_level import bmc, tdpo1, tdpo2, wpo
from jaxalign.objectives.token_weighted import ld_dpo, sampo, weighted_dpo
from jaxalign.objectives.unpaired import apo_zero_unpaired, bco, bco_udm, kto

__all__ = [
    "Range",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asft",
    "asft_tempered",
    "bco",
    "bco_pair",
    "bco_udm",
    "beta_dpo",
    "bmc",
    "cal_dpo",
    "chi_po",
    "cpo",
    "cpo_simpo",
    "dft",
    "discopop",
    "dpo",
    "dpop",
    "eurus_reward_model",
    "exo",
    "exo_list",
    "f_dpo",
    "h_dpo",
    "info_nca",
    "ipo",
    "kto",
    "kto_pair",
    "ld_dpo",
    "nca",
    "nca_pair",
    "nll",
    "orpo",
    "plackett_luce",
    "probability",
    "process_reward_model",
    "r_dpo",
    "reward_model",
    "reward_model_margin",
    "reward_model_ranked",
    "robust_dpo",
    "rrhf",
    "rso",
    "sampo",
    "sft",
    "simpo",
    "slic_hf",
    "spo",
    "sppo",
    "sppo_ranked",
    "sppo_soft",
    "tdpo1",
    "tdpo2",
    "tpo",
    "tpo_l",
    "weighted_dpo",
    "wpo",
]
