"""``manifest.json``: what a run was made of and what came of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxalign.build.data import CheckedData
from jaxalign.config import RunConfig, to_dict
from jaxalign.training.loop import Interrupted
from jaxalign.training.mesh import MeshPlan

PACKAGES = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers")


class Manifest:
    """Writes ``config.json`` and ``manifest.json``, the latter again whenever something is known.

    As a context manager it records how the run ended: ``done``, ``interrupted`` or ``failed``. Only the first process
    writes.
    """

    def __init__(self, workdir: Path, config: RunConfig, data: CheckedData, plan: MeshPlan):
        self._path = workdir / "manifest.json"
        device = plan.mesh.devices.flat[0]
        self._facts: dict[str, Any] = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "data": data.as_dict(),
            "device": {
                "kind": device.device_kind,
                "platform": device.platform,
                "devices": plan.mesh.size,
                "processes": jax.process_count(),
                "host": platform.platform(),
            },
            "versions": {"python": platform.python_version(), **_versions()},
        }
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            _write(workdir / "config.json", to_dict(config))
        self.note()

    def note(self, **facts: Any) -> None:
        """Adds facts and writes the file."""
        self._facts.update(facts)
        if jax.process_index() == 0:
            _write(self._path, self._facts)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.note(status="done")
        elif isinstance(error, Interrupted):
            self.note(status="interrupted", step=error.step)
        else:
            self.note(status="failed", error=f"{type(error).__name__}: {error}")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
