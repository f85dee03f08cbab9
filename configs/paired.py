r"""Align a model with preference pairs, by any method that can learn from them.

  jaxalign train --config=configs/paired.py:dpo,model=tiny --config.model.path=MODEL \
      --config.data.train=pairs.jsonl --config.data.eval_size=100 --workdir=runs/dpo

The argument is a method (`jaxalign methods`), then optionally a model of configs/common.py:

  --config=configs/paired.py:simpo                       any model; needs --config.model.path
  --config=configs/paired.py:ipo,model=tiny              settings for a small model on CPU; needs --config.model.path
  --config=configs/paired.py:dpo,model=mistral_7b        the model and the recipe of its size
  --config=configs/paired.py:kto                         each pair becomes two labelled examples (configs/unpaired.py)

What to expect: a model of a quarter of a million parameters takes less than a minute on two CPU cores for some hundred
short pairs. The loss of dpo starts at ln 2 = 0.6931, because policy and reference are then the same, and
eval_rewards/accuracies in metrics.jsonl rises from 0 (no pair is ranked yet) towards 1.
"""

from ml_collections import ConfigDict

from common import MODELS, is_large, preference_sections
from jaxalign.config_transport import parse_arg
from jaxalign.methods import METHODS, Layout

TAKE_PAIRS = (Layout.PAIRED, Layout.UNPAIRED)
LEARNERS = tuple(sorted((name for name in METHODS if METHODS[name].layout in TAKE_PAIRS), key=lambda n: n != "dpo"))

LARGE = {
    # The handbook's scan over beta on Zephyr found 0.01 best for all three.
    "dpo": {"method": {"beta": 0.01}},
    "ipo": {"method": {"beta": 0.01}},
    "kto": {"method": {"beta": 0.01}},
    # princeton-nlp/SimPO, Mistral-7B base.
    "simpo": {"method": {"beta": 2.0, "gamma_beta_ratio": 0.8}, "optimizer": {"learning_rate": 3e-7}},
}
"""Where a method's known recipe for about 7 billion parameters differs from the defaults."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, method=LEARNERS, model=tuple(MODELS))
    config = ConfigDict(preference_sections(args.model, args.method))
    if is_large(args.model):
        config.update(LARGE.get(args.method, {}))
    return config
