r"""The study of `jaxalign quickstart`: two starts, four methods, two betas and one other reference, on two CPU cores.

  jaxalign quickstart
  jaxalign study --config=configs/studies/quickstart.py:world=workdir/world --workdir=workdir/study --jobs=2

The two do the same; the second is how any other study is run. Arguments: `world`, the folder of the generated world,
and `seed`.

What to expect: README.md, "Quick start", has the numbers of a run.
"""

from jaxalign.quickstart.study import get_study

__all__ = ["get_study"]
