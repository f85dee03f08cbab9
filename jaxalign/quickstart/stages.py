"""The stages of studies in the generated world: how each model is made, as `jaxalign.studies.study.Stage`.

::

    random weights -- base -- sft ------- align
                        |---- instruct -- align
                        |---- align (SFT skipped)
                        `---- better      (a reference like the policy, but stronger)
    random weights -- foreign             (a reference unlike the policy)

`world` is a folder: `prepare` writes data and architectures into it, stages name files in it, and the study's runner
makes the models. Numbers are those of `jaxalign.quickstart.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.quickstart import settings
from jaxalign.quickstart.questions import answers
from jaxalign.quickstart.worlds import prepare
from jaxalign.studies.study import Measure, Stage

__all__ = ["align", "answers", "base", "better", "foreign", "instruct", "measures", "prepare", "sft"]

Sections = Mapping[str, Any]


def base(world: str | Path, seed: int = 0) -> Stage:
    """A model pretrained from random weights on the crowd's plain text: it never saw the chat format."""
    folder = Path(world)
    model = {"config": str(folder / "start" / "config.json"), "tokenizer": str(folder / "crowd" / "tokenizer")}
    return _stage("base", folder / "crowd" / "documents.jsonl", settings.BASE, seed, model=model)


def sft(world: str | Path, seed: int = 0) -> Stage:
    """The base model, fine-tuned on the crowd's demonstrations."""
    return _tuned("sft", world, "crowd", settings.SFT, seed)


def instruct(world: str | Path, seed: int = 0) -> Stage:
    """The base model, fine-tuned by somebody else: longer, on the demonstrations of a more careful crowd."""
    return _tuned("instruct", world, "tutors", settings.INSTRUCT, seed)


def better(world: str | Path, seed: int = 0) -> Stage:
    """A stronger model like the policy: the base model, fine-tuned on demonstrations that are nearly all right."""
    return _tuned("better", world, "experts", settings.INSTRUCT, seed)


def foreign(world: str | Path, seed: int = 0) -> Stage:
    """A stronger model unlike the policy: its own tokenizer and architecture, and right answers in a chatty style."""
    folder = Path(world)
    model = {"config": str(folder / "foreign" / "config.json"), "tokenizer": str(folder / "talkers" / "tokenizer")}
    return _stage("foreign", folder / "talkers" / "demonstrations.jsonl", settings.FOREIGN, seed, model=model)


def align(
    world: str | Path,
    start: Stage | None = None,
    method: str = "dpo",
    *,
    size: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    reference: Stage | str | None = None,
    **sections: Sections,
) -> Stage:
    """A model aligned with the judge's pairs.

    Args:
      world: the world's folder.
      start: what it starts from; None: `sft` of the same seed.
      method: a name of ``jaxalign methods``.
      size: pairs to train on, the first of a seeded order; None: all (`settings.PAIRS`).
      seed: of the order of the pairs, and with `size` of their choice.
      options: the method's, ``{"beta": 0.1}``; those not given are `settings.OPTIONS`' or the method's defaults.
      reference: ``reference.source``, or the stage that makes the reference; None: the method's default.
      sections: changes of a section, ``optimizer={"learning_rate": 1e-3}``.
    """
    folder = Path(world) / "crowd"
    numbers = settings.preferences(method)
    tree: dict[str, dict[str, Any]] = {
        "model": {"dtype": "float32"},
        "data": {
            "train": [str(folder / "pairs.jsonl")],
            "eval": [str(folder / "eval_pairs.jsonl")],
            "max_length": settings.MAX_LENGTH,
            "seed": seed,
        },
        "method": {"name": method, **settings.OPTIONS.get(method, {}), **(options or {})},
        "optimizer": dict(numbers["optimizer"]),
        "train": {**numbers["train"], "seed": seed},
        "logging": dict(settings.LOGGING),
        "evaluation": dict(settings.EVALUATION),
    }
    if size is not None:
        tree["data"]["size"] = size
    inputs = {"model.path": start if start is not None else sft(world, seed)}
    if isinstance(reference, Stage):
        inputs["reference.source"] = reference
    elif reference is not None:
        tree["reference"] = {"source": reference}
    else:  # these models are so small that a process which fills a cache takes longer than it saves
        tree["reference"] = {"mode": "live"}
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return Stage(name="align", config=tree, inputs=inputs)


def measures(world: str | Path) -> tuple[Measure, ...]:
    """What is measured of every model of the world: its answers, and what its training measured of held-out pairs."""
    from jaxalign.studies.measures import held_out

    folder = Path(world) / "crowd"
    return answers(folder / "questions.jsonl", folder / "eval_pairs.jsonl"), held_out()


def _tuned(name: str, world: str | Path, crowd: str, numbers: Mapping[str, Sections], seed: int) -> Stage:
    demonstrations = Path(world) / crowd / "demonstrations.jsonl"
    return _stage(name, demonstrations, numbers, seed, inputs={"model.path": base(world, seed)})


def _stage(
    name: str,
    data: Path,
    numbers: Mapping[str, Sections],
    seed: int,
    model: Sections | None = None,
    inputs: Mapping[str, Stage] | None = None,
) -> Stage:
    return Stage(
        name=name,
        config={
            "model": {**(model or {}), "dtype": "float32"},
            "data": {"train": [str(data)], "eval_size": 256, "max_length": settings.MAX_LENGTH, "seed": seed},
            "method": {"name": "sft"},
            "optimizer": dict(numbers["optimizer"]),
            "train": {**numbers["train"], "seed": seed},
            "logging": dict(settings.LOGGING),
            "evaluation": dict(settings.EVALUATION),
        },
        inputs=inputs or {},
    )
