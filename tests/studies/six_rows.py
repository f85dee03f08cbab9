"""A study of six rows over a tiny world: real training, and measures that cost nothing.

``six_rows.py:world=FOLDER`` with the folder that `worlds.write_world` wrote; ``steps`` says how long training takes,
and ``broken=measure`` lets a measure fail.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from jaxalign.config_transport import parse_arg
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.studies.study import Measure, Stage, Study, Subject, Trial


def get_study(arg):
    args = parse_arg(arg, world="", broken=("nothing", "measure"), steps=6)
    world = Path(args.world)

    def sections(method, **options):
        return {
            "model": {"dtype": "float32"},
            "data": {"train": [str(world / "pairs.jsonl")], "max_length": 48},
            "method": {"name": method, **options},
            "optimizer": {"learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
            "train": {
                "batch_size": 4, "steps": args.steps, "log_every": 1, "checkpoint_every": 2,
                "check_first_step": False,
            },
            "mesh": {"fsdp": 1, "data": -1},
            "logging": {"tensorboard": False, "progress": False},
        }  # fmt: skip

    def sft():
        tree = sections("sft")
        return Stage(name="sft", config={**tree, "model": {**tree["model"], "path": str(world / "model")}})

    def align(method, mode="live", **options):
        tree = {**sections(method, **options), "reference": {"mode": mode}}
        return Stage(name="align", config=tree, inputs={"model.path": sft()})

    def weights(subject: Subject) -> Outcome:
        if args.broken == "measure":
            raise RuntimeError("the ruler is lost")
        tensors = load_file(Path(subject.model) / "model.safetensors")
        values = [float(np.abs(tensor).mean()) for tensor in tensors.values()]
        (subject.out / "sizes.json").write_text(json.dumps(values))
        return Outcome(metrics={"mean": Metric(value=float(np.mean(values)), n=len(values), values=values)})

    def steps(subject: Subject) -> Outcome:
        rows = [] if subject.run is None else (subject.run / "metrics.jsonl").read_text().splitlines()
        return Outcome(metrics={"rows": Metric(value=float(len(rows)), n=1, unit="rows")})

    return Study(
        name="six-rows",
        question="Does the runner make what it says?",
        trials=(
            Trial(labels={"start": "model", "method": "none", "seed": 0}, model=str(world / "model")),
            Trial(labels={"start": "model", "method": "none", "seed": 1}, model=str(world / "model")),
            Trial(labels={"start": "sft", "method": "none"}, model=sft()),
            Trial(labels={"start": "sft", "method": "dpo", "beta": 0.1, "seed": 0}, model=align("dpo", beta=0.1)),
            Trial(
                labels={"start": "sft", "method": "dpo", "beta": 0.5, "seed": 0},
                model=align("dpo", beta=0.5, mode="cached"),
            ),
            Trial(
                labels={"start": "sft", "method": "ipo", "beta": 0.5, "seed": 0},
                model=align("ipo", beta=0.5, mode="cached"),
            ),
        ),
        measures=(Measure(name="weights", run=weights), Measure(name="steps", run=steps, settings={"of": "training"})),
        headline="weights/mean",
    )
