r"""Train a process reward model: which steps of a solution are right.

  jaxalign train --config=configs/steps.py:model=tiny --config.model.path=MODEL \
      --config.data.train=steps.jsonl --config.data.eval_size=50 --workdir=runs/steps

Rows are {"prompt", "completions": [the steps], "labels": [true or false for each]}; the label is learned at the last
token of its step. The argument is a model of configs/common.py.

What to expect: eval_accuracies is the share of steps judged as labelled. WORKDIR/export is a token classifier with the
classes wrong and right, which transformers loads as AutoModelForTokenClassification.
"""

from ml_collections import ConfigDict

from common import MODELS, preference_sections
from jaxalign.config_transport import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model=tuple(MODELS))
    return ConfigDict(preference_sections(args.model, "process_reward_model"))
