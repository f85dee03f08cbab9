"""Seconds, temporary memory and rate of scoring tokens over the vocabulary: ours beside other forms, one table.

    python benchmarks/scoring.py [--shapes small medium] [--rounds=5] [--device=cpu]

Forms: `plain` is log_softmax of all logits, `optax` its softmax_cross_entropy_with_integer_labels, `checkpoint` the
plain form of 128 tokens at a time under `jax.checkpoint` (what chunked heads elsewhere do), `ours` is
`jaxalign.logprobs.token_scores`, `ours+stats` the same with entropy, accuracy and mean logit. A pass is `forward`, or
`both`: forward and backward with another cotangent for every token. Useful operations are 2NDV and 6NDV for every form;
making logits a second time is work of the form, not useful. `s` is the processor's time on a CPU, which other work on
the machine changes less (`taskset -c 1` gives figures that compare), elsewhere the wall's. Rounds alternate; medians
are told, beside the rate of a product of the same width in blocks that caches hold, measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

SHAPES = {
    # name: rows, tokens of a row, scored, width, vocabulary, dtype
    "tiny": (2, 32, 16, 16, 300, "float32"),
    "small": (8, 384, 168, 256, 32_000, "float32"),
    "medium": (4, 512, 336, 512, 32_000, "float32"),
    "real": (4, 1200, 1100, 256, 32_000, "float32"),
    "qwen3": (2, 2048, 1024, 1024, 151_936, "bfloat16"),
    "llama3": (4, 2048, 1024, 4096, 128_256, "bfloat16"),
}
FORMS = ("plain", "optax", "checkpoint", "ours", "ours+stats")
STATISTICS = ("entropy", "correct", "mean_logit")


def forms() -> dict[str, Callable[..., Any]]:
    """Each is ``(hidden, head, source, target) -> (log-probabilities [R, S], further statistics)``."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxalign.logprobs import token_scores

    def logits_of(states, head):
        precision = jax.lax.Precision.HIGHEST if head.dtype == jnp.float32 else None
        return jnp.einsum("...d,dv->...v", states, head, precision=precision, preferred_element_type=jnp.float32)

    def states_of(hidden, source):
        return jnp.take_along_axis(hidden, source[..., None], axis=1)

    def plain(hidden, head, source, target):
        logps = jax.nn.log_softmax(logits_of(states_of(hidden, source), head))
        return jnp.take_along_axis(logps, target[..., None], -1)[..., 0], ()

    def with_optax(hidden, head, source, target):
        logits = logits_of(states_of(hidden, source), head)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, target), ()

    def checkpoint(hidden, head, source, target):
        states = states_of(hidden, source).reshape(-1, hidden.shape[-1])
        size = min(128, len(states))
        padding = -len(states) % size
        chunks = jnp.pad(states, ((0, padding), (0, 0))).reshape(-1, size, hidden.shape[-1])
        targets = jnp.pad(target.reshape(-1), (0, padding)).reshape(-1, size)

        @jax.checkpoint
        def one(chunk):
            logps = jax.nn.log_softmax(logits_of(chunk[0], head))
            return jnp.take_along_axis(logps, chunk[1][:, None], -1)[:, 0]

        return jax.lax.map(one, (chunks, targets)).reshape(-1)[: target.size].reshape(target.shape), ()

    def ours(hidden, head, source, target):
        return token_scores(hidden, head, source, target).logps, ()

    def with_statistics(hidden, head, source, target):
        scores = token_scores(hidden, head, source, target, statistics=STATISTICS)
        return scores.logps, (scores.entropy, scores.correct, scores.mean_logit)

    return dict(zip(FORMS, (plain, with_optax, checkpoint, ours, with_statistics), strict=True))


def product_of(shape: tuple) -> tuple[Callable[..., Any], tuple, float]:
    """States by the head, block by block, nothing kept: the function, its inputs, its operations."""
    import jax
    import jax.numpy as jnp

    rows, _, scored, width, vocabulary, dtype = shape
    tokens, size = min(1024, rows * scored), min(1024, vocabulary)
    blocks = vocabulary // size
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    states = jax.random.normal(jax.random.key(0), (tokens, width), dtype)
    head = jax.random.normal(jax.random.key(1), (blocks, width, size), dtype)

    def run(states, head):
        def one(total, block):
            product = jnp.matmul(states, block, precision=precision, preferred_element_type=jnp.float32)
            # Without the barrier the compiler may multiply the one column that is read.
            return total + jax.lax.optimization_barrier(product)[:, 0], None

        return jax.lax.scan(one, jnp.zeros(tokens), head)[0]

    return jax.jit(run), (states, head), 2.0 * tokens * width * blocks * size


def seconds(program: Callable[..., Any], arguments: tuple) -> float:
    """Of one call: the processor's on a CPU, the wall's elsewhere."""
    import jax

    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    started = clock()
    jax.block_until_ready(program(*arguments))
    return clock() - started


def inputs_of(shape: tuple) -> tuple:
    """Hidden states, head, source, target and a weight for each token."""
    import jax

    rows, length, scored, width, vocabulary, dtype = shape
    keys = jax.random.split(jax.random.key(2), 5)
    return (
        jax.random.normal(keys[0], (rows, length, width), dtype),
        jax.random.normal(keys[1], (width, vocabulary), dtype) / width**0.5,
        jax.random.randint(keys[2], (rows, scored), 0, length),
        jax.random.randint(keys[3], (rows, scored), 0, vocabulary),
        jax.random.normal(keys[4], (rows, scored)),
    )


def measure(name: str, chosen: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row of the table for each form and pass."""
    import jax

    shape = SHAPES[name]
    arguments = inputs_of(shape)
    rows, _, scored, width, vocabulary, _ = shape
    work = 2.0 * rows * scored * width * vocabulary

    def passes(form):
        def total(hidden, head, source, target, weights):
            logps, further = form(hidden, head, source, target)
            return (logps * weights).sum(), (logps, further)

        return {
            "forward": (lambda *args: form(*args[:4]), work),
            "both": (jax.grad(total, (0, 1), has_aux=True), 3 * work),
        }

    programs, table = {}, []
    for label, form in forms().items():
        for kind, (function, operations) in passes(form).items() if label in chosen else ():
            program = jax.jit(function).lower(*arguments).compile()
            row = {"shape": name, "pass": kind, "form": label, "operations": operations}
            row["temporary"] = program.memory_analysis().temp_size_in_bytes
            programs[kind, label] = (program, arguments, row, [])
    product, factors, operations = product_of(shape)
    row = {"shape": name, "pass": "product", "form": "alone", "operations": operations, "temporary": None}
    programs["product", "alone"] = (product, factors, row, [])
    for program, given, _, _ in programs.values():
        seconds(program, given)
    for _ in range(rounds):
        for program, given, _, times in programs.values():
            times.append(seconds(program, given))
    best = operations / statistics.median(programs["product", "alone"][3])
    for kind in ("product", "forward", "both"):
        for key, (_, _, row, times) in programs.items():
            if key[0] == kind:
                row["seconds"] = statistics.median(times)
                row["spread"] = max(times) / min(times)
                row["rate"] = row["operations"] / row["seconds"]
                row["share"] = row["rate"] / best
                table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["small", "medium"], choices=list(SHAPES))
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: what jax finds")
    args = parser.parse_args()
    if args.device:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(args.device, args.device)

    import jax

    table = []
    for name in args.shapes:
        table += measure(name, args.forms, args.rounds)
    print(f"\njax {jax.__version__}, {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}\n")
    print("| shape | pass | form | s | max/min | GFLOP/s | of the product's rate | temporary MB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in table:
        memory = "" if row["temporary"] is None else f"{row['temporary'] / 1e6:.0f}"
        print(
            f"| {row['shape']} | {row['pass']} | {row['form']} | {row['seconds']:.3g} | {row['spread']:.2f} "
            f"| {row['rate'] / 1e9:.1f} | {row['share']:.0%} | {memory} |"
        )


if __name__ == "__main__":
    main()
