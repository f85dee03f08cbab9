"""Which devices the rows that run side by side get."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from jaxalign.errors import ConfigError


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that a process with this environment would use, without using any."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu", "rocm"} & set(platforms.split(",")):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def has_tpu(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment would use a TPU."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or "TPU_ACCELERATOR_TYPE" in environment


def split_devices(jobs: int, environment: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """What the environment of each of several jobs gets: its share of the GPUs. Jobs on a CPU share it.

    Raises:
      ConfigError: there are fewer GPUs than jobs, or a TPU, which one process takes as a whole.
    """
    environment = os.environ if environment is None else environment
    if jobs < 1:
        raise ConfigError(f"--jobs: got {jobs}, expected a whole number >= 1.")
    if jobs == 1:
        return [{}]
    if has_tpu(environment):
        raise ConfigError(
            f"--jobs: got {jobs} on a TPU host, expected 1: one process takes all its chips. Give each host its part of"
            " the rows with --shard instead."
        )
    found = gpus(environment)
    if not found:
        return [{} for _ in range(jobs)]
    if jobs > len(found):
        raise ConfigError(f"--jobs: got {jobs}, expected at most {len(found)}, the GPUs here.")
    edges = [len(found) * i // jobs for i in range(jobs + 1)]
    parts = [found[a:b] for a, b in itertools.pairwise(edges)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
