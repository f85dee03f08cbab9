"""A DPO step with LoRA beside the full one: memory and FLOPs of the compiled programs, and CPU time of the step.

    taskset -c 1 python benchmarks/adapters.py

Both read the policy before training live: the full step from a copy, the LoRA step from the frozen base itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.methods import METHODS
from jaxalign.models.adapters import Adapter
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step
from jaxalign.training.trainable import adapters, full
from jaxalign.types import Rows


def one_pair_a_row(rows: int, tokens: int, vocabulary: int) -> Rows:
    """Rows of one pair each: a prompt of half the row, and two answers of a quarter."""
    half, quarter = tokens // 2, tokens // 4
    index = np.arange(tokens)
    start = np.where(index < half, 0, np.where(index < half + quarter, half, half + quarter))
    second = np.where(index >= half + quarter, quarter, 0)
    scored = np.arange(half, tokens)
    source = np.where(scored == half + quarter, half - 1, scored - 1)

    def stack(values) -> jax.Array:
        return jnp.asarray(np.tile(np.asarray(values, np.int32), (rows, 1)))

    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, tokens)).astype(np.int32)
    return Rows(
        jnp.asarray(ids), stack(index - second), stack(start), stack(0 * index), stack(np.where(index < half, 0, half)),
        stack(source), jnp.asarray(ids[:, half:]), stack((scored >= half + quarter).astype(int)),
        example_mask=jnp.ones((rows, 1), bool), columns={"example_id": jnp.arange(rows, dtype=jnp.int32)[:, None]},
        completions=2,
    )  # fmt: skip


def program(kind: str, config: DecoderConfig, rank: int, rows: Rows):
    """The compiled step and its arguments."""
    dpo, optimizer = METHODS["dpo"], optax.adam(1e-4)
    policy = build_policy(config, dtype="float32", adapter=Adapter(rank) if kind == "lora" else None)
    reference = references.shared(policy) if kind == "lora" else references.frozen(policy)
    trainable = adapters() if kind == "lora" else full()
    variables = policy.init(jax.random.key(0))
    state, untrained = create_state(variables, trainable, optimizer, reference, 0)
    copy = {} if kind == "lora" else jax.tree.map(jnp.copy, variables)
    frozen = {"policy": untrained, "reference": copy}
    step = make_train_step(policy, dpo, reference, trainable, optimizer, options=dpo.resolve_options({}))
    lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, rows)
    return lowered.cost_analysis()["flops"], lowered.compile(), state, frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = DecoderConfig(
        vocab_size=512, width=args.width, layers=args.layers, heads=args.width // 64, kv_heads=args.width // 64,
        head_dim=64, mlp_width=3 * args.width, max_positions=args.tokens, tied_embeddings=True,
    )  # fmt: skip
    rows = one_pair_a_row(args.rows, args.tokens, config.vocab_size)
    runs = {kind: list(program(kind, config, args.rank, rows)) for kind in ("full", "lora")}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for number in range(args.rounds + 1):
        for kind, run in runs.items():
            started = time.process_time()
            run[2], output = run[1](run[2], run[3], rows)
            jax.block_until_ready(output)
            if number:  # the first touches its memory
                seconds[kind].append(time.process_time() - started)
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}; {args.layers} "
          f"layers, width {args.width}, {args.rows} x {args.tokens} tokens, rank {args.rank}, float32")  # fmt: skip
    print("| step | arguments MiB | temporary MiB | FLOPs (a scan's body once) | CPU s, median | spread |")
    print("|---|---|---|---|---|---|")
    for kind, (flops, compiled, _, _) in runs.items():
        memory = compiled.memory_analysis()
        sizes = [size / 2**20 for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)]
        times = seconds[kind]
        middle = statistics.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {kind} | {sizes[0]:.1f} | {sizes[1]:.1f} | {flops:.3g} | {middle:.2f} | {spread} |")


if __name__ == "__main__":
    main()
