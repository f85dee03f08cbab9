r"""The two stages of `jaxalign quickstart`, to run and change one by one.

  jaxalign quickstart --workdir=runs/quickstart            # writes the world; both stages, samples, the page
  jaxalign train --config=configs/quickstart.py:sft --workdir=runs/quickstart/my-sft
  jaxalign train --config=configs/quickstart.py:dpo,start=runs/quickstart/my-sft/export \
      --config.method.beta=0.05 --workdir=runs/quickstart/my-dpo

The argument is the stage (sft, dpo, or another method that takes pairs), then optionally the folder of the quickstart
and the model to start from.

What to expect: a few minutes a stage on two CPU cores. Each answer of the world can be checked by a function: the model
of the first stage imitates a crowd that is often wrong, and preferences make it right where the crowd was not.
"""

from ml_collections import ConfigDict

from jaxalign.config_transport import parse_arg
from jaxalign.methods import METHODS, Layout

STAGES = ("sft", *sorted((n for n in METHODS if METHODS[n].layout is Layout.PAIRED), key=lambda name: name != "dpo"))


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, stage=STAGES, folder="runs/quickstart", start="")
    world = f"{args.folder}/world"
    from_scratch = args.stage == "sft" and not args.start
    if from_scratch:
        model = {"config": f"{args.folder}/model/config.json", "tokenizer": f"{world}/tokenizer"}
    else:
        model = {"path": args.start or f"{args.folder}/sft/export"}
    if args.stage == "sft":
        data = {"train": f"{world}/demonstrations.jsonl"}
        optimizer = {"learning_rate": 2e-3, "schedule": "cosine"}
        epochs = 2.0
    else:
        data = {"train": f"{world}/pairs.jsonl", "eval": f"{world}/eval_pairs.jsonl"}
        optimizer = {"learning_rate": 1e-4}
        epochs = 1.0
    return ConfigDict(
        {
            "model": {"dtype": "float32", **model},
            "method": {"name": args.stage},
            "data": data,
            "optimizer": optimizer,
            "train": {"batch_size": 64, "epochs": epochs},
        }
    )
