"""A study of six rows over a tiny world: real training, and measures that cost nothing.

``six_rows.py:FOLDER`` with the folder that `worlds.write_world` wrote. ``broken=sft`` or ``broken=align`` makes a stage
fail while it trains, ``broken=measure`` a measure; ``steps`` and ``pause`` say how long training takes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from jaxalign.config_transport import parse_arg
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.studies.study import Measure, Stage, Study, Subject, Trial


def get_study(arg):
    args = parse_arg(arg, world="", broken="none", steps=6, pause=0.0, reference="cached")
    world = Path(args.world)

    def sections(method, seed=0, **options):
        broken = args.broken == ("sft" if method == "sft" else "align") and (method == "sft" or options["beta"] == 0.5)
        return {
            "model": {"dtype": "float32"},
            "data": {"train": [str(world / "pairs.jsonl")], "max_length": 48, "seed": seed},
            "method": {"name": method, **options},
            # Steps this long end in numbers that are not finite.
            "optimizer": {"learning_rate": 1e30 if broken else 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
            "train": {
                "batch_size": 4, "steps": args.steps, "log_every": 1, "checkpoint_every": 2, "seed": seed,
                "check_first_step": False,
            },
            "mesh": {"fsdp": 1, "data": -1},
            "logging": {"tensorboard": False, "progress": False},
        }  # fmt: skip

    def sft():
        tree = sections("sft")
        return Stage(name="sft", config={**tree, "model": {**tree["model"], "path": str(world / "model")}})

    def align(method, seed=0, mode="live", **options):
        tree = {**sections(method, seed, **options), "reference": {"mode": mode}}
        return Stage(name="align", config=tree, inputs={"model.path": sft()})

    def weights(subject: Subject) -> Outcome:
        time.sleep(args.pause)
        if args.broken == "measure" and subject.start is not None:
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
            Trial(labels={"start": "model", "method": "none"}, model=str(world / "model")),
            Trial(labels={"start": "sft", "method": "none"}, model=sft()),
            Trial(labels={"start": "sft", "method": "dpo", "beta": 0.1, "seed": 0}, model=align("dpo", beta=0.1)),
            Trial(
                labels={"start": "sft", "method": "dpo", "beta": 0.5, "seed": 0},
                model=align("dpo", beta=0.5, mode=args.reference),
            ),
            Trial(
                labels={"start": "sft", "method": "ipo", "beta": 0.5, "seed": 0},
                model=align("ipo", beta=0.5, mode=args.reference),
            ),
            Trial(labels={"start": "sft", "method": "dpo", "beta": 0.1, "seed": 1}, model=align("dpo", 1, beta=0.1)),
        ),
        measures=(Measure(name="weights", run=weights), Measure(name="steps", run=steps, settings={"of": "training"})),
        headline="weights/mean",
    )
