"""The check of the first step: silent for a true reference, loud for another one."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign import build
from jaxalign.build.start_check import make_start_check
from jaxalign.errors import NumericsError
from jaxalign.methods import METHODS
from jaxalign.training.reference_parts import checksum
from jaxalign.training.step import StepOutput


@pytest.mark.parametrize("method", ["dpo", "ipo", "kto"])
def test_it_passes_in_bfloat16(method, finished):
    """Against the cache, whose program is another one. (All other tests run it in float32.)"""
    run = finished(
        method__name=method, model__dtype="bfloat16", reference__mode="cached", train__steps=1, data__eval_size=0,
        train__export=False,
    )  # fmt: skip
    expected = {"dpo": math.log(2), "ipo": (1 / 0.2) ** 2, "kto": 0.5}[method]
    assert run.steps[0]["loss"] == pytest.approx(expected, rel=0.02)


def test_it_allows_what_bfloat16_rounds():
    """Of an answer of few and likely tokens too: hundredths of a nat a token, up to 4 % of what is compared."""

    def check(dtype, policy):
        output = StepOutput({}, True, np.array([[[policy, -90.0]]]), np.array([[[-3.0, -90.0]]]))
        make_start_check(METHODS["wpo"], {}, dtype)(None, output)  # of a method whose loss it cannot know

    check("bfloat16", -3.14)
    check("float32", -3.0001)
    for dtype, policy in (("bfloat16", -3.8), ("float32", -3.001)):
        with pytest.raises(NumericsError, match="completion 0 of an example"):
            check(dtype, policy)


def tamper(cache, shift: float) -> None:
    """Adds to every stored log-probability, and signs the new values."""
    for part in cache.glob("*/part-*.parquet"):
        table = pq.read_table(part)
        keys = table.column("key").to_pylist()
        values = [np.array(v, np.float32) + np.float32(shift) for v in table.column("logps").to_pylist()]
        checks = [checksum(key, value) for key, value in zip(keys, values, strict=True)]
        table = pa.table({"key": keys, "logps": [v.tolist() for v in values], "checksum": checks}, schema=table.schema)
        pq.write_table(table, part, compression="none", use_dictionary=False, write_page_checksum=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_stops_a_run_whose_reference_is_not_its_start(dtype, start_run, configure, tmp_path):
    settings = {
        "model__dtype": dtype, "reference__mode": "cached", "reference__cache_dir": tmp_path / "cache",
        "data__eval_size": 0, "train__steps": 2, "train__checkpoint_every": 1,
    }  # fmt: skip
    build.cache_reference(configure(**settings))
    tamper(tmp_path / "cache", {"float32": 0.01, "bfloat16": 2.0}[dtype])
    with pytest.raises(NumericsError, match=r"step 1: .*not the model that training starts from") as caught:
        build.train(configure(**settings), tmp_path / "run")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run" / "export").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == []
    # The entries were read, not computed again: the values themselves were wrong.
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["reference"]["cache"]
    assert counts["computed"] == counts["corrupted"] == 0
    unchecked = start_run(**settings, train__check_first_step=False, train__export=False)
    assert unchecked.manifest["status"] == "done"
