"""The smallest study: two methods at two betas, two seeds each. Copy it and change it; docs/studies.md explains it.

  jaxalign study --config=configs/studies/two_methods.py:model=MODEL,pairs=FILE --workdir=studies/two-methods --dry-run

The argument names a model (a Hugging Face folder or hub id) and a file of preference pairs.
"""

from jaxalign.config_transport import parse_arg
from jaxalign.studies import measures
from jaxalign.studies.study import Stage, Study, Trial


def get_study(arg: str | None = None) -> Study:
    args = parse_arg(arg, model="MODEL", pairs="pairs.jsonl", steps=100, seeds=2)
    data = {"train": [args.pairs], "eval_size": 64, "max_length": 256}
    trials = [Trial(labels={"method": "none"}, model=args.model)]
    for method in ("dpo", "ipo"):
        for beta in (0.1, 0.5):
            for seed in range(args.seeds):
                config = {
                    "model": {"path": args.model},
                    "data": data,
                    "method": {"name": method, "beta": beta},
                    "optimizer": {"learning_rate": 1e-4},
                    "train": {"batch_size": 16, "steps": args.steps, "seed": seed},
                }
                labels = {"method": method, "beta": beta, "seed": seed}
                trials.append(Trial(labels=labels, model=Stage(name="align", config=config)))
    return Study(
        name="two-methods",
        question="Which of DPO and IPO ranks held-out pairs better, and at which beta?",
        trials=tuple(trials),
        measures=(measures.held_out({"data": data, "method": {"name": "dpo"}}),),
        headline="held_out/ranking/accuracy",
    )
