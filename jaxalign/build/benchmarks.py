"""Benchmarks of a model in a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.suites import get_suite
from jaxalign.files import write_text
from jaxalign.models.huggingface import load_policy, resolve
from jaxalign.training.mesh import make_mesh


def run_benchmarks(
    model: str | Path,
    suite: str,
    *,
    benchmarks: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    system: str | None = None,
    overlong: str = "error",
    dtype: str = "bfloat16",
    batch_tokens: int = 8192,
    batch_size: int = 16,
    seed: int = 0,
    out: str | Path | None = None,
) -> Outcome:
    """Measures a model on a suite of benchmarks through lm-eval, over all devices.

    Args:
      model: a Hugging Face folder or hub id.
      suite: a name of `jaxalign.evaluation.suites.SUITES`, or ``"tasks:arc_easy,piqa"`` with tasks of lm-eval.
      benchmarks: a folder with the data (see `jaxalign.evaluation.benchmark_files`); None = the hub's.
      limit: the first so many documents of each task; None = all.
      shots: examples in each prompt instead of the suite's own numbers.
      chat: use the model's chat template.
      system: the system's message.
      overlong: ``"error"``, or ``"cut"`` contexts that are longer than the model on their left, as lm-eval's hf
        backend does; they are counted.
      dtype: of weights and arithmetic.
      batch_tokens: places in the rows that are scored at once, on each part of the batch.
      batch_size: texts generated at once, on each part of the batch.
      seed: of sampled generations.
      out: a folder for ``benchmarks.json``, the outcome, and lm-eval's ``results_*.json`` and ``samples_*.jsonl``.

    Returns:
      The outcome, see `jaxalign.evaluation.run_suite.run_suite`.

    Raises:
      ConfigError: settings are wrong, or lm-eval is not installed.
      DataError: data are missing, or contexts are too long for the model.
      ModelError: the model cannot be read.
    """
    chosen = get_suite(suite)
    # Only now: lm-eval takes seconds to load.
    from jaxalign.evaluation.benchmark_files import BenchmarkFolder
    from jaxalign.evaluation.harness import JaxalignLM
    from jaxalign.evaluation.run_suite import run_suite

    files = BenchmarkFolder(benchmarks) if benchmarks else None
    folder = resolve(model)
    tokenizer = load_tokenizer(folder)
    plan = make_mesh()
    with jax.set_mesh(plan.mesh):
        policy, variables = load_policy(
            folder, dtype=dtype, param_dtype=dtype, shardings=plan.sharding, constrain=plan.constrain
        )
    lm = JaxalignLM(
        policy,
        variables,
        tokenizer,
        plan=plan,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        overlong=overlong,  # type: ignore[arg-type]
        seed=seed,
    )
    first = jax.process_index() == 0
    outcome = run_suite(
        lm,
        chosen,
        folder=files,
        limit=limit,
        shots=shots,
        chat=chat,
        system=system,
        out=out if first else None,
        model_name=str(model),
    )
    if out and first:
        text = json.dumps(outcome.as_dict(), indent=2, allow_nan=False) + "\n"
        write_text(Path(out) / "benchmarks.json", text)
    return outcome
