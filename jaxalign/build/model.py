"""A run's configuration made ready, its mesh, and its policy on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxalign.config import RunConfig, resolve, validate
from jaxalign.errors import ConfigError
from jaxalign.methods import Method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.huggingface import load_variables
from jaxalign.models.huggingface import resolve as resolve_model
from jaxalign.models.policy import Policy, build_policy
from jaxalign.planning.memory import run_adapter
from jaxalign.training.mesh import MeshPlan, make_mesh
from jaxalign.training.readings import wants_language_head
from jaxalign.training.torus import torus_mesh
from jaxalign.training.trainable import Trainable, adapters, full


def settled(config: RunConfig) -> RunConfig:
    """The configuration with nothing left to guess.

    Raises:
      ConfigError: with all its problems.
    """
    config = resolve(config)
    problems = validate(config, devices=jax.device_count())
    if config.model.attention == "kernel" and jax.default_backend() == "cpu":
        problems.append("model.attention: got 'kernel', expected auto, chunked or dense: CPUs have no kernel for it.")
    if problems:
        raise ConfigError(problems)
    return config


def mesh_plan(config: RunConfig) -> MeshPlan:
    """The mesh over all devices."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def make_policy(config: RunConfig, decoder: DecoderConfig, plan: MeshPlan, method: Method | None = None) -> Policy:
    """The functions of a model of this architecture, for this mesh.

    Args:
      config: the run.
      decoder: the architecture.
      plan: the mesh.
      method: that the model is trained with, which may need a head of its own, or no language model's, and with the
        run's adapters; None = the model is only read.
    """
    outputs = 0 if method is None else method.head_outputs(method.resolve_options(config.method.options))
    return build_policy(
        decoder,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        constrain=plan.constrain,
        remat=config.model.remat,
        attention=config.model.attention,
        head_outputs=outputs,
        language_head=method is None or wants_language_head(method),
        adapter=None if method is None else run_adapter(config),
        torus=torus_mesh(plan),
    )


def make_trainable(config: RunConfig) -> Trainable:
    """Which variables a run trains."""
    return full() if config.adapter.kind == "none" else adapters(head=config.adapter.head)


def start_variables(config: RunConfig, policy: Policy, plan: MeshPlan) -> Any:
    """The weights that training starts from, each read straight into its shards."""
    if config.model.path is not None:
        return load_folder(resolve_model(config.model.path), policy, plan, seed=config.train.seed)
    shardings = plan.tree_shardings(policy.axes(), policy.abstract())
    return jax.jit(policy.init, out_shardings=shardings)(jax.random.key(config.train.seed))


def load_folder(folder: Path, policy: Policy, plan: MeshPlan, seed: int = 0) -> Any:
    """The weights of a Hugging Face folder on the mesh; a head that it does not have is drawn from the seed."""
    return load_variables(folder, policy, shardings=plan.sharding, seed=seed)
