"""``manifest.json``: what a run was made of and what came of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxalign.build.data import CheckedData
from jaxalign.config import RunConfig, read_json, resolve, to_dict
from jaxalign.config_checks import differences
from jaxalign.errors import ConfigError, DataError
from jaxalign.files import write_text
from jaxalign.training.loop import Interrupted
from jaxalign.training.mesh import MeshPlan

PACKAGES = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers")


def check_same_configuration(workdir: Path, config: RunConfig) -> bool:
    """Whether the folder holds a run with checkpoints to go on from.

    Raises:
      ConfigError: it does, but of a configuration that this one cannot continue; with what differs.
    """
    path = workdir / "config.json"
    if not any(workdir.glob("checkpoints/[0-9]*")) or not path.is_file():
        return False
    before = resolve(read_json(path))
    changed = differences(before, config)
    if changed:
        modes = before.reference.mode, config.reference.mode
        if modes == ("live", "cached"):  # runs of a version whose `auto` was live
            changed.append("With reference.mode=live, what auto once meant, the run goes on as it began.")
        raise ConfigError(
            f"--workdir: {workdir} holds a run with another configuration. Give another folder, remove this one, or"
            f" continue its run with --workdir={workdir} alone. What differs:" + "".join(f"\n  {c}" for c in changed)
        )
    return True


def check_same_data(workdir: Path, data: CheckedData) -> None:
    """Whether the data are those that the run in the folder began with.

    Raises:
      DataError: they are not; with the sets that differ.
    """
    before = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))["data"]
    changed = [
        f"{name} data: the examples are not those that the run in {workdir} began with ({before[name]['examples']}"
        f" then, {len(examples)} now): the files, the tokenizer or the chat template changed. Restore them, or give"
        " another --workdir."
        for name, (examples, report) in data.sets.items()
        if name in before and before[name]["data_hash"] != report.data_hash
    ]
    if changed:
        raise DataError(changed)


class Manifest:
    """Writes ``config.json`` and ``manifest.json``, the latter again whenever something is known.

    As a context manager it records how the run ended: ``done``, ``interrupted`` or ``failed``. Only the first process
    writes.
    """

    def __init__(self, workdir: Path, config: RunConfig, data: CheckedData, plan: MeshPlan):
        self._path = workdir / "manifest.json"
        self._resumed = any(workdir.glob("checkpoints/[0-9]*"))
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
        self._before = _read(self._path)
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                _write(workdir / "config.json", to_dict(config))
            except OSError as error:
                raise ConfigError(f"--workdir: {workdir} cannot be written: {error.strerror}.") from error
        self.note()

    def note_reference(self, facts: Mapping[str, Any]) -> None:
        """Adds what is known of the reference.

        Raises:
          ConfigError: the run goes on, but from another reference than it began with.
        """
        before = self._before.get("reference", {}).get("hash")
        if self._resumed and before is not None and before != facts.get("hash"):
            raise ConfigError(
                f"reference.source: {facts['source']!r} holds other weights ({facts.get('hash')}) than when the run"
                f" began ({before}). Restore them, or give another --workdir."
            )
        self.note(reference=dict(facts))

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


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
