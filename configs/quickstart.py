r"""Runs beside the quick start, to change them: any method from its SFT model with its pairs, or SFT from its base.

The world must be there, so run the quick start first (`jaxalign quickstart`, minutes on two CPU cores); then

  jaxalign train --config=configs/quickstart.py:ipo --workdir=workdir/quickstart/ipo
  jaxalign train --config=configs/quickstart.py:dpo --config.method.beta=0.02 --workdir=workdir/quickstart/dpo-beta-0.02
  jaxalign train --config=configs/quickstart.py:sft,seed=1 --workdir=workdir/quickstart/sft-1

The argument is a method: sft fine-tunes the base model of the quick start on the demonstrations, any other aligns its
SFT model with the pairs. `world` is the folder of the quick start. The study itself is configs/studies/quickstart.py.

What to expect: see jaxalign/quickstart/settings.py for the numbers, and WORLD/report.html for the curves.
"""

from ml_collections import ConfigDict

from jaxalign.config_transport import parse_arg
from jaxalign.methods import METHODS, Layout
from jaxalign.quickstart.settings import sections

NAMES = tuple(name for name in METHODS if METHODS[name].layout in (Layout.SINGLE, Layout.PAIRED, Layout.UNPAIRED))


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg, method=("dpo", *(name for name in NAMES if name != "dpo")), world="workdir/quickstart", seed=0
    )
    return ConfigDict(sections(args.method, args.world, args.seed))
