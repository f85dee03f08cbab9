"""Run by test_reference_processes.py in each of two processes: fill a store together, then evaluate together."""

from __future__ import annotations

import json
import sys

import jax

folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)

import numpy as np  # noqa: E402

from jaxalign.data.records import Example  # noqa: E402
from jaxalign.evaluation.preferences import CompletionScores, collect  # noqa: E402
from jaxalign.training.mesh import make_mesh  # noqa: E402
from jaxalign.training.reference_fill import fill, read  # noqa: E402
from jaxalign.training.reference_store import ReferenceStore  # noqa: E402

examples = [Example(np.array([1, i], np.int32), (np.arange(1 + i % 3), np.arange(5)), {}, f"row {i}") for i in range(9)]
calls: list[list[str]] = []


def truth(example):
    return tuple(-c - example.prompt[1] / 3 for c in example.completions)


def score(work):
    calls.append([example.source for example in work])
    return [(i, truth(example)) for i, example in enumerate(work)]


store = ReferenceStore(folder, "weights", "template", "float32/forward-1", process_index=process)
reports = [fill(store, examples[:4], score), fill(store, examples, score)]
cached = read(store, examples)
exact = all(
    np.array_equal(got, np.asarray(want, np.float32))
    for i, example in enumerate(examples)
    for got, want in zip(cached.tokens(i), truth(example), strict=True)
)

plan = make_mesh(data=2)
mine = np.arange(3 * process, 3 * process + 3, dtype=np.int32)  # ids of this process's rows, one example a row
values = {"policy": -1.0 * mine, "reference": 0.0 * mine, "lengths": 1.0 + mine}
columns = {name: np.stack([v, v - 1], 1)[:, None].astype(np.float32) for name, v in values.items()}
scores = CompletionScores(
    **columns, example_mask=(mine != 4)[:, None], columns={"example_id": 10 - mine[:, None]}, has_reference=True
)
everything = collect([plan.put_rows(scores, 6, 3 * process)])  # type: ignore[arg-type]
print(
    json.dumps(
        {
            "reports": reports,
            "calls": calls,
            "exact": exact,
            "ids": everything.columns["example_id"].tolist(),
            "policy": everything.policy[:, 0].tolist(),
        }
    ),
    flush=True,
)
