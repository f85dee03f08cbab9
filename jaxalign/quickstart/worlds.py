"""The data of studies in the generated world: a crowd to learn from and align with, and crowds of other models."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from jaxalign.data.synthetic import World, write_world
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.quickstart import settings


def crowds(seed: int = 0) -> dict[str, World]:
    """The worlds by folder. All ask the same questions; only ``crowd`` is judged."""
    crowd = World(seed=seed, **settings.CROWD)
    others = {
        name: replace(crowd, documents=0, pairs=0, eval_pairs=0, questions=0, **rates)
        for name, rates in settings.OTHERS.items()
    }
    return {"crowd": crowd, **others}


def prepare(world: str | Path, seed: int = 0) -> None:
    """Writes the data of every crowd and the architectures of the models. What is there already is left alone.

    Args:
      world: folder; gets ``crowd/``, ``tutors/``, ``experts/``, ``talkers/``, ``start/`` and ``foreign/``.
      seed: of everything random in the data.

    Raises:
      ConfigError: the folder holds the world of another seed or version.
    """
    folder = Path(world)
    check_world(folder, seed)
    for name, expected in crowds(seed).items():
        if not (folder / name / "world.json").is_file():  # it is written last
            write_world(folder / name, expected)
    for name, architecture, crowd in (
        ("start", settings.ARCHITECTURE, "crowd"),
        ("foreign", settings.FOREIGN_ARCHITECTURE, "talkers"),
    ):
        write_architecture(folder / name, architecture, folder / crowd / "tokenizer")


def write_architecture(folder: Path, architecture: dict[str, object], tokenizer_folder: Path) -> None:
    """Writes the config.json that a model starts from."""
    tokenizer = load_tokenizer(tokenizer_folder)
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = {**architecture, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ends}
    path = folder / "config.json"
    text = json.dumps(config, indent=2) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def check_world(folder: Path, seed: int) -> None:
    """Another world's files are not overwritten: models beside them were trained on them.

    Raises:
      ConfigError: the folder holds the world of another seed or version.
    """
    changed = []
    for name, world in crowds(seed).items():
        summary = folder / name / "world.json"
        if summary.is_file():
            found, expected = json.loads(summary.read_text(encoding="utf-8"))["world"], asdict(world)
            both = sorted(found.keys() | expected.keys())
            pairs = [(key, found.get(key), expected.get(key)) for key in both]
            changed += [f"{name}: {key} was {old!r}, is {new!r}" for key, old, new in pairs if old != new]
    if changed:
        raise ConfigError(
            f"{folder} holds another world ({'; '.join(changed)}). Give another folder, or remove this one."
        )
