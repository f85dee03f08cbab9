"""The reference pass: how near its rate comes to the bare forward, and when a cached run overtakes a live one.

    python benchmarks/reference_cache.py [--model=small] [--pairs=256] [--rounds=5]

Rounds alternate the bare jitted forward over rows that lie on the device, the pass that fills an empty store (packing,
transfer, forward, writing to disk), a second pass that finds everything, and train steps with a live and with a cached
reference. Model and pairs are random; rates are in unique tokens a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import jax
    import numpy as np
    from small_run import Parts, add_options, frozen_reference, medians, timed

    from jaxalign.training import references
    from jaxalign.training.reference_fill import fill, read
    from jaxalign.training.reference_scorer import RowScorer, choose_rows
    from jaxalign.training.reference_store import ReferenceStore

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--fill-batch", type=int, default=64, help="pairs in a call (evaluation.batch_size)")
    parser.add_argument("--steps", type=int, default=4, help="train steps a round")
    args = parser.parse_args()
    parts = Parts.of(args)
    with jax.set_mesh(parts.plan.mesh), tempfile.TemporaryDirectory() as folder:
        examples, plan = parts.examples, parts.plan
        shape, count = choose_rows(
            examples.row_tokens.tolist(),
            examples.scored_tokens.tolist(),
            2,
            batch_size=args.fill_batch,
            multiple=plan.batch_size,
            width=parts.policy.config.width,
        )
        scorer = RowScorer(parts.policy, parts.variables, shape, count, plan)
        calls = list(scorer.packed(examples))
        tokens = int(examples.row_tokens.sum())
        put = [scorer.put(*call) for call in calls]

        def bare():
            return jax.block_until_ready([scorer.logps(parts.variables, rows) for rows in put])

        def store(name):
            return ReferenceStore(Path(folder) / name, "weights", "template", f"{args.dtype}/bench")

        def second(name):
            opened = store(name)
            assert fill(opened, examples, scorer).computed == 0
            return read(opened, examples)

        bare()
        fill(store("first"), examples, scorer)
        cached = second("first")
        live, frozen = frozen_reference(parts)
        steps = {}
        attach = lambda epoch, identity: {"reference_logps": cached.tokens(identity)}  # noqa: E731
        kinds = (("live", live, frozen, None), ("cached", references.cached(), {"policy": {}, "reference": {}}, attach))
        for name, reference, tree, columns in kinds:
            batches, packer, step, state = parts.training(reference, 64, columns)
            rows = parts.put(packer(batches(0)))
            state, told = step(state, tree, rows)
            steps[name] = [step, tree, rows, state, told.read()]

        def train(name):
            step, tree, rows, state, _ = steps[name]
            for _ in range(args.steps):
                state, told = step(state, tree, rows)
            steps[name][3] = jax.block_until_ready(state)
            told.read()

        found: dict[str, list[np.ndarray]] = {}
        for number in range(args.rounds):
            work = {
                "bare forward": bare,
                "fill": lambda number=number: fill(store(f"round {number}"), examples, scorer),
                "second run": lambda number=number: second(f"round {number}"),
                "live step": lambda: train("live"),
                "cached step": lambda: train("cached"),
            }
            for name, call in work.items():
                found.setdefault(name, []).append(timed(call)[0] / (args.steps if name.endswith("step") else 1))
        size = sum(path.stat().st_size for path in Path(folder, "first").rglob("*.parquet"))
        scored = int(examples.scored_tokens.sum())
        places = len(calls) * count * shape.tokens
        print(f"\n{jax.devices()[0].device_kind}, {args.model}, {args.dtype}, {len(examples)} pairs, {tokens} unique "
              f"tokens, {scored} of them scored; calls of {count} rows of {shape.tokens}, {tokens / places:.0%} full; "
              f"{args.rounds} rounds; load {os.getloadavg()[0]:.1f}")  # fmt: skip
        print("| | wall s | processor s | tokens / processor s |\n|---|---|---|---|")
        of = {"live step": tokens * args.batch / len(examples), "cached step": tokens * args.batch / len(examples)}
        for name, rounds in found.items():
            wall, processor = medians(rounds)
            print(f"| {name} | {wall:.3f} | {processor:.3f} | {of.get(name, tokens) / processor:,.0f} |")
        ratio = [a / b for a, b in zip(found["bare forward"], found["fill"], strict=True)]
        print(f"fill at {medians(ratio)[1]:.1%} of the bare forward's rate (processor; wall {medians(ratio)[0]:.1%})")
        _, pass_ = medians(found["fill"])
        saved = (medians(found["live step"])[1] - medians(found["cached step"])[1]) / args.batch
        if saved > 0:
            pairs = pass_ / saved
            print(f"a cached run overtakes a live one after {pairs:.0f} pairs trained on, {pairs / len(examples):.2f} "
                  f"epochs of these {len(examples)}")  # fmt: skip
        print(f"{size / scored:.1f} bytes on disk a scored token")
        memory = {name: made[0].facts()["memory"]["temporary"] / 2**20 for name, made in steps.items()}
        print(f"temporaries of a step: live {memory['live']:.1f} MiB, cached {memory['cached']:.1f} MiB")


if __name__ == "__main__":
    main()
