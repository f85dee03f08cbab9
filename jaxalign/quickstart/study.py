"""The quick start's study, as ``jaxalign study`` reads it: two starts, four methods, two betas, one other reference."""

from __future__ import annotations

from pathlib import Path

from jaxalign.config_transport import parse_arg
from jaxalign.quickstart import settings, stages
from jaxalign.studies.study import Stage, Study, Trial

QUESTION = (
    "In a generated world whose right answers are known: what do DPO, IPO, KTO and CPO make of a tiny model, with and "
    "without supervised fine-tuning before, and does a stronger reference help DPO?"
)
NOTES = (
    "The models have some 0.15 million parameters and learn ten tasks on lists of animals from a crowd that "
    "makes typical mistakes; nothing here says anything of language.",
    "One seed: intervals are over the held-out questions, not over trainings. For that, run other seeds.",
    "A method's beta does not mean the same in another method, and learning rates were not searched for each of them.",
    "Where SFT is skipped, the model was pretrained on plain text only; it meets the chat format in the pairs.",
)


def get_study(arg: str | None = None) -> Study:
    """The study. Arguments: ``world``, the folder of the generated world, and ``seed``, of everything."""
    args = parse_arg(arg, world="workdir/quickstart/world", seed=0)
    return quickstart_study(args.world, args.seed)


def quickstart_study(world: str | Path, seed: int = 0) -> Study:
    """The study in this world.

    Args:
      world: folder; the data are written there.
      seed: of the data, of the initial weights and of the order of examples.
    """
    starts = {"base": stages.base(world, seed), "sft": stages.sft(world, seed)}
    trials = [_trial({"start": name, "method": "none"}, stage, seed) for name, stage in starts.items()]
    for start, stage in starts.items():
        for method in settings.METHODS:
            for beta in settings.BETAS:
                aligned = stages.align(world, stage, method, seed=seed, options={"beta": beta})
                trials.append(_trial({"start": start, "method": method, "beta": beta}, aligned, seed))
    beta = settings.BETAS[0]
    aligned = stages.align(
        world, starts["sft"], "dpo", seed=seed, options={"beta": beta}, reference=stages.better(world, seed)
    )
    trials.append(_trial({"start": "sft", "method": "dpo", "beta": beta, "reference": "better"}, aligned, seed))
    return Study(
        name="quickstart",
        question=QUESTION,
        trials=tuple(trials),
        measures=stages.measures(world),
        headline="answers/exact",
        compare="method",
        notes=NOTES,
        prepare=lambda: stages.prepare(world, seed),
    )


def _trial(labels: dict[str, str | float], stage: Stage, seed: int) -> Trial:
    return Trial(labels={**labels, "seed": seed}, model=stage)
