"""A model with random weights, random pairs and a DPO step over them: what the benchmarks of loop and cache share."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign.build.data import column_names
from jaxalign.build.row_layout import lay_out, row_work
from jaxalign.data.pipeline import Packer, ShuffledBatches
from jaxalign.data.records import Example, ExampleSet
from jaxalign.methods import get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import Policy, build_policy
from jaxalign.training import references
from jaxalign.training.compiled import CompiledStep
from jaxalign.training.mesh import MeshPlan, make_mesh
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.references import Reference
from jaxalign.training.state import TrainState, create_state, state_shardings
from jaxalign.training.step import make_train_step
from jaxalign.training.trainable import full

SIZES = {
    "tiny": {"vocab_size": 512, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 128},
    "small": {
        "vocab_size": 4096, "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp_width": 352
    },
    "medium": {
        "vocab_size": 32000, "width": 256, "layers": 4, "heads": 4, "kv_heads": 4, "head_dim": 64, "mlp_width": 688
    },
    "135m": {
        "vocab_size": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp_width": 1536
    },
}  # fmt: skip
"""Architectures, by the name that --model takes; 0.1, 1.2 and 11 million parameters (and 8 of them an embedding), and
the shape of SmolLM-135M with a head of its own."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model, which pairs, how many of them."""
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--lengths", type=int, nargs=4, default=(64, 128, 32, 128), metavar=("P0", "P1", "C0", "C1"),
                        help="prompts of P0 to P1 tokens, answers of C0 to C1")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)


@dataclass(frozen=True)
class Parts:
    """What a step is made of."""

    plan: MeshPlan
    policy: Policy
    examples: ExampleSet
    batch: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Parts:
        """From the options. Call it, and use what it gives, with `jax.set_mesh`."""
        plan = make_mesh()
        config = DecoderConfig(**SIZES[args.model], max_positions=4096, tied_embeddings=False)
        policy = build_policy(config, dtype=args.dtype, constrain=plan.constrain)
        draw = np.random.default_rng(0)
        p0, p1, c0, c1 = args.lengths

        def tokens(low: int, high: int) -> np.ndarray:
            return draw.integers(3, config.vocab_size, draw.integers(low, high + 1)).astype(np.int32)

        pairs = [Example(tokens(p0, p1), (tokens(c0, c1), tokens(c0, c1)), {}, f"pair {i}") for i in range(args.pairs)]
        return cls(plan, policy, ExampleSet.from_examples(pairs), args.batch)

    @functools.cached_property
    def variables(self) -> Any:
        """Random weights on the mesh."""
        shardings = self.plan.tree_shardings(self.policy.axes(), self.policy.abstract())
        return jax.jit(self.policy.init, out_shardings=shardings)(jax.random.key(0))

    def training(
        self, reference: Reference, steps: int, attach: Any = None
    ) -> tuple[ShuffledBatches, Packer, CompiledStep, TrainState]:
        """The batches, their packer, the compiled step, and a state to start from."""
        method = get_method("dpo")
        optimizer, schedule = make_optimizer("adamw", 1e-6, "constant", 10_000, 0.0, clip_norm=1.0)
        trainable = full()

        def begin(variables):
            return create_state(variables, trainable, optimizer, reference, 0, method.state)[0]

        shardings = state_shardings(
            jax.eval_shape(begin, self.policy.abstract()),
            self.plan.tree_shardings(self.policy.axes(), self.policy.abstract()),
            self.plan.replicated,
        )
        step = make_train_step(
            self.policy, method, reference, trainable, optimizer, options=method.resolve_options({}), schedule=schedule
        )
        batches = ShuffledBatches(self.examples, batch_size=self.batch, seed=0, attach=attach)
        layout = lay_out(batches, self.plan.batch_size, steps=steps, work=row_work(self.policy.config), most=1)
        packer = layout.packer(column_names(method, reference.columns), self.plan.local_rows)
        compiled = CompiledStep(step, shardings, self.plan.replicated)
        return batches, packer, compiled, jax.jit(begin, out_shardings=shardings)(self.variables)

    def put(self, batch: Any) -> Any:
        """A packed batch on the devices."""
        return self.plan.put_rows(batch.rows, batch.global_rows, batch.first_row)


def frozen_reference(parts: Parts) -> tuple[Reference, dict[str, Any]]:
    """The start, computed live, and the frozen tree that holds it."""
    return references.frozen(parts.policy), {"policy": {}, "reference": parts.variables}


def clocks() -> np.ndarray:
    """Seconds of the wall clock, and of the processor: what other work on the machine changes less."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(call: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """The seconds of a call, as `clocks` gives them, and what it gives."""
    started = clocks()
    found = call()
    return clocks() - started, found


def medians(rounds: Sequence[np.ndarray]) -> tuple[float, float]:
    """Medians of wall and processor seconds."""
    wall, processor = zip(*rounds, strict=True)
    return statistics.median(wall), statistics.median(processor)
