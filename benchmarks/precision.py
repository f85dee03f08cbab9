"""What rounding puts on log-probabilities of a real model: bfloat16, int8, and other rows for a cached reference.

    python benchmarks/precision.py --model=../shared/data/lm-stories260k/hf \
        --data=../shared/data/pref-polite/pairs.json.gz [--pairs=200]

Every pair is scored as the pass of a cached reference packs it, and as a training step does. At step 0 both are of the
same weights: what they differ by is the error of the log-ratio there, which is 0 with a live reference.
"""

from __future__ import annotations

import argparse
import datetime
import os

import jax
import numpy as np

from jaxalign.build.data import check_data
from jaxalign.build.row_layout import lay_out, scoring_layout
from jaxalign.config import from_dict
from jaxalign.data.pipeline import OrderedBatches
from jaxalign.data.records import ExampleSet
from jaxalign.models.huggingface import load_policy
from jaxalign.models.policy import Policy
from jaxalign.models.quantization import quantize
from jaxalign.training.mesh import make_mesh
from jaxalign.training.reference_scorer import RowScorer
from jaxalign.training.scoring import score
from jaxalign.types import Variables

BETA = 0.1


def as_cached(policy: Policy, variables: Variables, examples: ExampleSet) -> np.ndarray:
    """Sums of completions ``[B, 2]``, nats, from the pass that fills the cache."""
    plan = make_mesh(devices=jax.devices()[:1])
    shape, rows = scoring_layout([examples], False, batch_size=64, multiple=1, width=policy.config.width)
    found = np.zeros((len(examples), 2))
    for i, values in RowScorer(policy, variables, shape, rows, plan)([examples[i] for i in range(len(examples))]):
        found[i] = [each.astype(np.float64).sum() for each in values]
    return found


def as_trained(policy: Policy, variables: Variables, examples: ExampleSet, batch_size: int) -> np.ndarray:
    """The same in the rows of a training step, where a live reference reads them too."""
    batches = OrderedBatches(examples, batch_size=batch_size)
    packer = lay_out(batches, 1).packer((), lambda count: slice(0, count))
    sums = jax.jit(lambda variables, rows: score(policy, variables, rows).sums)
    found = np.zeros((len(examples), 2))
    for step in range(len(batches)):
        batch = packer(batches(step))
        ids = np.asarray(batch.rows.columns["example_id"])
        found[ids[ids >= 0]] = np.asarray(sums(variables, batch.rows))[ids >= 0]
    return found


def columns(errors: np.ndarray) -> str:
    sizes = np.abs(errors)
    return f"{np.median(sizes):.2g} | {np.quantile(sizes, 0.95):.2g} | {sizes.max():.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="preference pairs")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=12, help="pairs of a training step")
    args = parser.parse_args()
    config = from_dict({"model": {"path": args.model}, "data": {"train": [args.data], "size": args.pairs}})
    examples = check_data(config).sets["train"][0]
    sums, step_0 = {}, {}
    for dtype in ("float32", "bfloat16"):
        policy, variables = load_policy(args.model, dtype=dtype)
        sums[dtype] = as_cached(policy, variables, examples)
        step_0[dtype] = as_trained(policy, variables, examples, args.batch) - sums[dtype]
        sums[f"int8, {dtype} around it"] = as_cached(policy, quantize(variables), examples)
    exact = sums.pop("float32")
    tokens = examples.completion_lengths.mean()
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}; {exact.size} "
          f"completions of {tokens:.0f} tokens and {exact.mean():.0f} nats on average\n")  # fmt: skip
    print("| a completion, against float32, nats | median | 95 % | largest |\n|---|---|---|---|")
    for name, found in sums.items():
        print(f"| {name} | {columns(found - exact)} |")
    print("\n| at step 0, cached against the step, nats | median | 95 % | largest | loss of DPO - ln 2 |")
    print("|---|---|---|---|---|")
    for dtype, ratios in step_0.items():
        margins = ratios[:, 0] - ratios[:, 1]
        loss = np.logaddexp(0, -BETA * margins).mean() - np.log(2)
        print(f"| {dtype}: log-ratio of a completion | {columns(ratios)} | |")
        print(f"| {dtype}: margin of a pair | {columns(margins)} | {loss:.1e} |")


if __name__ == "__main__":
    main()
