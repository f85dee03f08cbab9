"""Joins the processes of a run on several hosts (``--distributed``), before anything asks for a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError

COORDINATOR = "JAXALIGN_COORDINATOR_ADDRESS"
NUM_PROCESSES = "JAXALIGN_NUM_PROCESSES"
PROCESS_ID = "JAXALIGN_PROCESS_ID"


def settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of ``jax.distributed.initialize`` that the environment gives.

    What it does not give, JAX detects (Cloud TPU, GKE, Slurm, Open MPI). With all three variables set nothing is
    detected, so that one process of a Slurm node may have all its devices.

    Raises:
      ConfigError: with every variable that is wrong.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    address = environment.get(COORDINATOR)
    if address:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            problems.append(f"{COORDINATOR}: got {address!r}, expected host:port of process 0.")
        found["coordinator_address"] = address
    for variable, argument, least in ((NUM_PROCESSES, "num_processes", 1), (PROCESS_ID, "process_id", 0)):
        text = environment.get(variable)
        if not text:
            continue
        if not text.isdecimal() or int(text) < least:
            problems.append(f"{variable}: got {text!r}, expected a whole number >= {least}.")
            continue
        found[argument] = int(text)
    if "num_processes" in found and found.get("process_id", 0) >= found["num_processes"]:
        problems.append(
            f"{PROCESS_ID}: got {found['process_id']}, expected less than {NUM_PROCESSES} = {found['num_processes']}."
        )
    if problems:
        raise ConfigError(problems)
    if len(found) == 3:
        found["cluster_detection_method"] = "deactivate"
    return found


def connect() -> None:
    """Meets the other processes of the run; returns once all are there.

    Raises:
      ConfigError: the environment is wrong, or JAX does not know this cluster and the environment does not describe it.
      RuntimeError: the others did not come in time.
    """
    arguments = settings(os.environ)
    import jax

    try:
        jax.distributed.initialize(**arguments)
    except ValueError as error:
        missing = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if not os.environ.get(name)]
        raise ConfigError(
            f"--distributed: JAX detects no cluster here ({error}) and {', '.join(missing)} are not set."
            " Set them, or leave --distributed out on one host."
        ) from error
