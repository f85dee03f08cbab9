"""The command's exit codes for whole runs, with everything told at once and nothing broken left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.cli import main


@pytest.fixture
def command(world, repository, tmp_path, capsys):
    """Runs the verb `train` (or another) over the tiny world; returns its exit code and what it said."""

    def run(*words: str, verb: str = "train", **changes: str) -> tuple[int, str]:
        settings = {
            "model.path": str(world.model),
            "model.dtype": "float32",
            "data.train": str(world.pairs),
            "data.eval_size": "8",
            "reference.cache_dir": str(tmp_path / "cache"),
            "train.steps": "2",
            "train.batch_size": "8",
            "logging.progress": "false",
            "logging.tensorboard": "false",
            **changes,
        }
        workdir = [] if verb in ("cache-reference", "check-data") else [f"--workdir={tmp_path / 'run'}"]
        code = main(
            [
                verb,
                f"--config={repository / 'configs' / 'paired.py'}:dpo",
                *workdir,
                *(f"--config.{path}={value}" for path, value in settings.items()),
                *words,
            ]
        )
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out + captured.err

    return run


def test_a_run_from_start_to_end(command, tmp_path):
    code, said = command()
    assert code == 0
    assert "eval_rewards/accuracies" in said
    assert f"The aligned model is in {tmp_path / 'run' / 'export'}." in said
    assert command()[0] == 0  # again: nothing is left to do
    code, said = command(**{"method.beta": "0.3"})
    assert code == 2
    assert "holds a run with another configuration" in said
    assert "method.beta: was 0.1, is 0.3" in said
    code, said = command(verb="evaluate")
    assert code == 0
    assert json.loads(said)["eval_loss"] > 0


def test_cache_reference(command):
    first, again = (json.loads(command(verb="cache-reference")[1]) for _ in range(2))
    assert (first["entries"], first["computed"], again["computed"], again["hits"]) == (80, 80, 0, 80)


def test_all_rows_dropped(command, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Why?\\n", "chosen": "a", "rejected": "a"}\n' * 5)
    for verb in ("train", "check-data"):
        code, said = command(
            verb=verb, **{"data.train": str(tmp_path / "bad.jsonl"), "data.on_bad": "drop", "data.eval_size": "0"}
        )
        assert code == 3
        assert "identical pair 5" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--config.method.beta=nan"], ["method.beta", "nan"]),
        (["--config.optimizer.learning_rate=inf"], ["optimizer.learning_rate", "inf"]),
        (["--config.method.betta=0.1"], ["method.betta", "Did you mean 'beta'?"]),
        (["--config.optimizer.learnin_rate=1"], ["Did you mean 'optimizer.learning_rate'?"]),
        (["--config.modle.path=x"], ["modle", "Did you mean 'model'?"]),
        (["--config.reference.mode=cashed"], ["reference.mode: got 'cashed'", "cached"]),
        (["--config.method.beta=nan", "--config.train.stepz=3", "--wrkdir=x"], ["nan", "train.stepz", "--wrkdir"]),
        (["--config.model.attention=kernel"], ["model.attention: got 'kernel'", "CPUs"]),
        (["--config.model.path=/no/such/folder"], ["/no/such/folder", "does not exist"]),
    ],
    ids=lambda value: None if isinstance(value[0], str) and not value[0].startswith("--") else "+".join(value),
)
def test_wrong_configurations(words, texts, command, tmp_path):
    code, said = command(*words)
    assert code == 2
    for text in texts:
        assert text in said
    assert not (tmp_path / "run").exists()


def test_nan_weights(command, world, tmp_path):
    import shutil

    shutil.copytree(world.model, tmp_path / "model")
    tensors = {name: tensor.copy() for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()}
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    model = {"model.path": str(tmp_path / "model")}
    code, said = command(**model, **{"reference.mode": "live", "train.checkpoint_every": "1"})
    assert code == 4
    assert "step 1: the loss is nan" in said
    assert "pairs.jsonl row" in said
    assert not [path for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()]
    assert not (tmp_path / "run" / "export").exists()
    code, said = command(verb="cache-reference", **model)
    assert code == 4
    assert "check the reference's weights" in said
