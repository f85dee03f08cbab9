r"""Align a model with single completions that are labelled good or bad (KTO).

  jaxalign train --config=configs/unpaired.py:kto,model=tiny --config.model.path=MODEL \
      --config.data.train=votes.jsonl --config.data.eval_size=100 --workdir=runs/kto

Rows are {"prompt", "completion", "label": true or false}; of preference pairs, each answer becomes a row. The argument
is a method (`jaxalign methods`), then optionally a model of configs/common.py, as for configs/paired.py.

What to expect: a step takes about twice as long as one of sft on as many completions, because behind each prompt also
another example's completion is scored. If good and bad examples differ in number, weigh them so that
desirable_weight * good is 1 to 4/3 times undesirable_weight * bad.
"""

from ml_collections import ConfigDict

from common import MODELS, is_large, preference_sections
from jaxalign.config_transport import parse_arg
from jaxalign.methods import METHODS, Layout

UNPAIRED = tuple(sorted(name for name in METHODS if METHODS[name].layout is Layout.UNPAIRED))

LARGE = {"kto": {"method": {"beta": 0.01}}}  # the handbook's scan over beta on Zephyr


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, method=UNPAIRED, model=tuple(MODELS))
    config = ConfigDict(preference_sections(args.model, args.method))
    if is_large(args.model):
        config.update(LARGE.get(args.method, {}))
    return config
