r"""Align a model with rankings: several scored completions of each prompt.

  jaxalign train --config=configs/ranked.py:plackett_luce,model=tiny --config.model.path=MODEL \
      --config.data.train=rankings.jsonl --config.data.eval_size=50 --workdir=runs/ranked

Rows are {"prompt", "completions": [...], "scores": [...]}, UltraFeedback's {"instruction", "completions": [{"response",
"overall_score"}]}, or OpenAssistant's trees; a pair is a ranking of two. Prompts may have different numbers of
completions. The argument is a method (`jaxalign methods`), then optionally a model of configs/common.py, as for
configs/paired.py, whose methods take rankings too: the best and the worst completion, or all pairs
(data.pairs_per_prompt).

What to expect: eval_rewards/accuracies is the share of differently scored pairs that the policy orders as the scores
do. A prompt with K completions costs one prompt and K completions, never K prompts.
"""

from ml_collections import ConfigDict

from common import MODELS, preference_sections
from jaxalign.config_transport import parse_arg
from jaxalign.methods import METHODS, Layout

RANKED = tuple(sorted((n for n in METHODS if METHODS[n].layout is Layout.RANKED), key=lambda n: n != "plackett_luce"))


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, method=RANKED, model=tuple(MODELS))
    return ConfigDict(preference_sections(args.model, args.method))
