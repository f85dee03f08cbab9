"""Sums divided once, and a record that survives a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.errors import ConfigError
from jaxalign.training.checkpoint import lower_is_better
from jaxalign.training.metrics import METRICS_FILE, Averages, MetricsFile, MetricSinks, read_metrics

# Averages.


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 10)), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_means_do_not_depend_on_the_batches(examples, sizes):
    averages, rest = Averages(), list(examples)
    for size in sizes:
        batch, rest = rest[:size], rest[size:]
        averages.add({"loss": (sum(v * w for v, w in batch), sum(w for _, w in batch))})
    total = sum(w for _, w in examples)
    if total == 0:
        assert averages.means() == {}
    else:
        expected = sum(v * w for v, w in examples) / total
        assert averages.means()["loss"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_metric_that_nothing_counted_for_is_left_out():
    averages = Averages()
    averages.add({"loss": (6.0, 4.0), "rewards/chosen": (0.0, 0.0)})
    assert averages.means() == {"loss": 1.5}


def test_unpaired_margins_are_the_difference_of_the_means():
    """(2 + 4) / 3 desirable and -5 / 5 others: 2 - (-1) = 3."""
    averages = Averages()
    averages.add({"rewards/chosen": (2.0, 1.0), "rewards/rejected": (-5.0, 5.0)})
    averages.add({"rewards/chosen": (4.0, 2.0), "rewards/rejected": (0.0, 0.0)})
    assert averages.means()["rewards/margins"] == 3.0


def test_a_paired_margin_is_kept():
    averages = Averages()
    averages.add({"rewards/chosen": (2.0, 1.0), "rewards/rejected": (1.0, 1.0), "rewards/margins": (7.0, 1.0)})
    assert averages.means()["rewards/margins"] == 7.0


def test_averages_go_through_json_exactly():
    averages = Averages()
    averages.add({"loss": (np.float32(0.1), np.float32(3.0)), "kl": (1 / 3, 1.0)})
    back = Averages.from_dict(json.loads(json.dumps(averages.as_dict())))
    assert back == averages
    averages.clear()
    assert averages.means() == {}
    assert back.means()["kl"] == 1 / 3


# metrics.jsonl.


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


def test_rows_are_there_as_soon_as_they_are_written(tmp_path):
    file = MetricsFile(tmp_path / "run")
    file.write(1, {"loss": 0.5, "rewards/accuracies": np.float32(0.25)})
    assert read_metrics(tmp_path / "run") == [{"step": 1, "loss": 0.5, "rewards/accuracies": 0.25}]
    file.write(2, {"eval_loss": math.nan, "count": 3})
    assert read_metrics(tmp_path / "run")[1] == {"step": 2, "eval_loss": None, "count": 3}
    file.close()


def test_rows_survive_sigkill(tmp_path):
    """Another process writes rows until it is killed without warning: whole rows, none missing."""
    script = (
        "import sys\n"
        "from jaxalign.training.metrics import MetricsFile\n"
        "file = MetricsFile(sys.argv[1])\n"
        "for step in range(1, 10**9):\n"
        "    file.write(step, {'loss': 1 / step})\n"
        "    if step == 200: print('ready', flush=True)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, env={**os.environ}
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"ready"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    written = steps(tmp_path)
    assert len(written) >= 200
    assert written == list(range(1, len(written) + 1))


def test_going_on_removes_the_rows_after_the_checkpoint(tmp_path):
    file = MetricsFile(tmp_path)
    for step in (2, 4, 4, 6):
        file.write(step, {"loss": float(step)})
    file.close()
    with (tmp_path / METRICS_FILE).open("a") as torn:
        torn.write('{"step": 8, "lo')  # a crash of the machine
    before = read_metrics(tmp_path)
    file = MetricsFile(tmp_path, step=4)
    assert read_metrics(tmp_path) == before[:3]
    file.write(6, {"loss": 0.0})
    file.close()
    assert steps(tmp_path) == [2, 4, 4, 6]


def test_a_new_run_starts_an_empty_file(tmp_path):
    for _ in range(2):
        file = MetricsFile(tmp_path)
        file.write(1, {"loss": 1.0})
        file.close()
    assert steps(tmp_path) == [1]


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


# Sinks.


def test_every_sink_gets_the_rows(tmp_path, monkeypatch):
    scalars = []

    class Writer:
        def __init__(self, folder, purge_step):
            scalars.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

        def close(self):
            scalars.append("closed")

    class Run:
        def __init__(self, **settings):
            self.settings, self.rows, self.finished = settings, [], False

        def log(self, row, step):
            self.rows.append((step, row))

        def finish(self):
            self.finished = True

    runs = []

    def init(**settings):
        runs.append(Run(**settings))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with MetricSinks(tmp_path, total_steps=10, wandb="project", config={"seed": 1}) as sinks:
        sinks.advance(1)
        sinks.write(1, {"loss": 0.5})
    assert scalars == [(str(tmp_path / "tensorboard"), None), ("loss", 0.5, 1), "closed"]
    assert runs[0].rows == [(1, {"loss": 0.5})]
    assert runs[0].finished
    assert runs[0].settings["config"] == {"seed": 1}
    assert steps(tmp_path) == [1]

    # Going on from step 1: the same W&B run, and TensorBoard drops what came later.
    MetricSinks(tmp_path, total_steps=10, step=1, wandb="project").close()
    assert runs[1].settings["id"] == runs[0].settings["id"]
    assert scalars[3] == (str(tmp_path / "tensorboard"), 2)
    assert steps(tmp_path) == [1]


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX")
    with MetricSinks(tmp_path, total_steps=2) as sinks:
        sinks.write(1, {"loss": 0.5, "rewards/chosen": 0.1})
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"rewards/chosen" in events.read_bytes()


def test_missing_tensorboard_is_a_note(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with caplog.at_level("INFO"), MetricSinks(tmp_path, total_steps=2) as sinks:
        sinks.write(1, {"loss": 0.5})
    assert [(r.levelname, "tensorboardX is not installed" in r.message) for r in caplog.records] == [("INFO", True)]
    assert steps(tmp_path) == [1]


def test_missing_wandb_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logging.wandb: got 'project', but wandb is not installed"):
        MetricSinks(tmp_path, total_steps=2, wandb="project")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricSinks(tmp_path, total_steps=2) as sinks:
        sinks.advance(1)
        sinks.write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_where_the_run_is(tmp_path, monkeypatch):
    """On a terminal: it starts at the restored step, moves, and shows the loss."""
    from io import StringIO

    class Terminal(StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with MetricSinks(tmp_path, total_steps=10, step=4, tensorboard=False) as sinks:
        sinks.advance(5)
        sinks.write(5, {"loss": 0.1234, "rewards/accuracies": 0.75})
    text = terminal.getvalue()
    assert "5/10" in text
    assert "loss=0.1234" in text
    assert "accuracies=0.75" in text


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("eval_loss", True),
        ("eval_nll_loss", True),
        ("eval_loss/spo", True),
        ("eval_degree_loss", True),
        ("eval_kl", True),
        ("eval_kl/sequence", True),
        ("eval_rewards/accuracies", False),
        ("eval_rewards/margins", False),
        ("eval_degree_accuracies", False),
        ("eval_policy/accuracies", False),
    ],
)
def test_which_way_a_metric_is_better(metric, lower):
    """The best checkpoint by one term's loss is that with the lowest."""
    assert lower_is_better(metric) == lower
