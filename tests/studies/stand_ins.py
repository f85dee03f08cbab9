"""Training that takes no time, for tests of what runs when: it leaves the files that a real run leaves."""

from __future__ import annotations

import json
from pathlib import Path

from jaxalign.config import RunConfig, to_dict
from jaxalign.studies.folders import write_json


class Trainings:
    """Stands in for `jaxalign.build`: counts what was asked for, and fails where it is told to."""

    def __init__(self):
        self.trained: list[str] = []
        self.filled: list[int | None] = []
        self.fails: dict[str, Exception] = {}

    def train(self, config: RunConfig, folder: Path) -> None:
        self.trained.append(folder.name)
        for name, error in self.fails.items():
            if folder.name.startswith(name):
                raise error
        finish(config, folder)

    def cache_reference(self, config: RunConfig) -> dict:
        self.filled.append(config.data.size)
        return {"entries": 1}


def finish(config: RunConfig, folder: Path, steps: int = 3) -> None:
    """Writes what a finished run has."""
    write_json(folder / "config.json", to_dict(config))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1, "loss": 1 / (i + 1), "num_tokens": 10 * i}) + "\n" for i in range(steps))
    )
    write_json(folder / "export" / "config.json", {})
    (folder / "export" / "model.safetensors").write_bytes(b"")
    data = {"train": {"examples": 4, "data_hash": "d", "template_hash": None}}
    write_json(folder / "manifest.json", {"status": "done", "steps": steps, "data": data, "train_seconds": 1.5})
