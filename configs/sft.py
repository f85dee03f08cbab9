r"""Supervised fine-tuning on demonstrations, the usual first stage before preferences.

  jaxalign train --config=configs/sft.py:tiny --config.model.path=MODEL \
      --config.data.train=demonstrations.jsonl --config.data.eval_size=100 --workdir=runs/sft

Rows are {"messages"} or {"prompt", "completion"}; only completions are scored (data.loss_on=all: every token). The
argument is a model of configs/common.py: any (needs --config.model.path), tiny, mistral_7b, ...; then optionally a
method: configs/sft.py:tiny,method=dft.

What to expect: eval_loss falls fast and flattens within the epoch. WORKDIR/export is then the model.path of
configs/paired.py.
"""

from ml_collections import ConfigDict

from common import MODELS, sft_sections
from jaxalign.config_transport import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model=tuple(MODELS), method=("sft", "dft"))
    config = ConfigDict(sft_sections(args.model))
    config.update({"method": {"name": args.method}})
    return config
