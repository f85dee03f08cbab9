"""A checkpoint or a model as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from jaxalign.build.data import architecture, export_tokenizer, tokenizer_folder
from jaxalign.build.model import make_policy, make_trainable, mesh_plan, start_variables
from jaxalign.config import RunConfig, read_json
from jaxalign.data.prompts import end_token_ids
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.methods import get_method
from jaxalign.models.huggingface import load_policy, resolve, save_pretrained
from jaxalign.training.checkpoint import Checkpoints, abstract_state


def convert(source: str | Path, target: str | Path, *, dtype: str | None = None) -> None:
    """Writes a model as a Hugging Face folder.

    Args:
      source: a run's workdir (its latest checkpoint), ``WORKDIR/checkpoints/STEP``, or a Hugging Face folder or hub id
        (to change the stored precision).
      target: the folder to write; new or empty.
      dtype: of the stored weights; None keeps what they have.

    Raises:
      ConfigError: there is no checkpoint, or the target holds files.
      ModelError: the source is no model.
    """
    path = Path(source)
    if Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise ConfigError(
            f"--to: {target} is there and not empty, expected a new folder. Remove it, or choose another."
        )
    run = next((folder for folder in (path, path.parent.parent) if (folder / "config.json").is_file()), None)
    if run is not None and (run / "checkpoints").is_dir():
        step = int(path.name) if path != run else None
        _convert_checkpoint(run, step, target, dtype)
        return
    folder = resolve(source)
    policy, variables = load_policy(folder, dtype="float32", param_dtype=dtype or _stored_dtype(folder))
    save_pretrained(policy, variables, target, tokenizer=load_tokenizer(folder))


def _convert_checkpoint(run: Path, step: int | None, target: str | Path, dtype: str | None) -> None:
    config = read_json(run / "config.json")
    checkpoints = Checkpoints(run / "checkpoints")
    if step is None and checkpoints.latest_step is None:
        raise ConfigError(f"--from: {run} has no checkpoint yet.")
    policy, variables = _restore(config, checkpoints, step)
    tokenizer = export_tokenizer(config, load_tokenizer(tokenizer_folder(config)))
    save_pretrained(policy, variables, target, tokenizer=tokenizer, end_tokens=end_token_ids(tokenizer), dtype=dtype)


def _restore(config: RunConfig, checkpoints: Checkpoints, step: int | None):
    plan = mesh_plan(dataclasses.replace(config, mesh=type(config.mesh)()))
    policy = make_policy(config, architecture(config), plan, get_method(config.method.name))
    trainable = make_trainable(config)
    shardings = plan.tree_shardings(policy.axes(), policy.abstract())
    trained, untrained = trainable.split(abstract_state(policy.abstract(), shardings))
    trained = checkpoints.restore_trained(trained, step)
    # What is not trained is in no checkpoint: it is what the run started from.
    frozen = trainable.split(start_variables(config, policy, plan))[1] if jax.tree.leaves(untrained) else untrained
    return policy, trainable.join(trained, frozen)


def _stored_dtype(folder: Path) -> str:
    from jaxalign.models.safetensors_files import Tensors

    tensors = Tensors(folder)
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    return names.get(tensors.dtype(next(iter(tensors.files))), "float32")
