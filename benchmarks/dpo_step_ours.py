"""Our side of dpo_step.py, which starts this file: a DPO step as `jaxalign train` takes it, in a process of its own.

    python benchmarks/dpo_step_ours.py --setting small --warmup 2 --steps 4 [--cached] [--bench=FOLDER]

Rows are laid out for the batches of a long run, all sizes are compiled before the first step, and packing and transfer
are inside each timed step, before its computation and not beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def shared_world(bench: str | None) -> Any:
    """Settings, pairs and clocks: the shared benchmark's, or our own."""
    sys.path.insert(0, bench or str(HERE / "peers"))
    return importlib.import_module("common" if bench else "world")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="small")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cached", action="store_true", help="the reference computed before training")
    parser.add_argument("--bench", help="folder of the shared benchmark")
    parser.add_argument("--dtype", default="float32", help="of the arithmetic")
    parser.add_argument("--weights", default="float32", help="type of the weights; of the frozen base with --lora")
    parser.add_argument("--lora", type=int, default=0, help="rank, on all projections; 0 = all weights are trained")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--row-length", type=int)
    parser.add_argument("--run", type=int, default=2000, help="steps of the run that rows are laid out for")
    parser.add_argument("--matmul-seconds", type=float, default=1.0, help="for which its rate is measured")
    parser.add_argument("--trace", metavar="FOLDER", help="of the steps after the warm-up")
    return parser.parse_args(argv)


def matmul_rate(tokens: int, width: int, outputs: int, dtype: str, *, seconds: float = 1.0) -> float:
    """FLOPs a second of products ``[tokens, width] x [width, outputs]`` and back, on all threads; the median."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    repeats = 4

    @jax.jit
    def products(x, up, down):
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ up) @ down, x)

    draw = np.random.default_rng(0)
    x, up, down = (
        jnp.asarray(draw.standard_normal(shape, np.float32) / np.sqrt(shape[-1]), dtype)
        for shape in ((tokens, width), (width, outputs), (outputs, width))
    )
    products(x, up, down).block_until_ready()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        started = time.perf_counter()
        products(x, up, down).block_until_ready()
        taken.append(time.perf_counter() - started)
    return repeats * 4 * tokens * width * outputs / float(np.median(taken))


def useful_flops(decoder: Any, pairs: Sequence[Mapping[str, Sequence[int]]], *, live: bool, adapters: int = 0) -> float:
    """Operations that a step over these pairs needs, however it is computed.

    As `jaxalign.planning.flops` counts a step; the reference has the policy's architecture.

    Args:
      decoder: the architecture.
      pairs: with token ids.
      live: whether the reference is computed in the step.
      adapters: parameters of low-rank factors, where only these are trained.
    """
    from jaxalign.planning.flops import step

    tokens = scored = attended = 0
    for pair in pairs:
        prompt = len(pair["prompt_ids"])
        answers = [len(pair[key]) for key in ("chosen_ids", "rejected_ids")]
        tokens += prompt + sum(answers)
        scored += sum(answers)
        attended += prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in answers)
    read = {"tokens": tokens, "scored": scored, "attended": attended}
    return step(decoder, decoder if live else None, **read, factors=adapters or None)


def example_set(pairs: Sequence[Mapping[str, Sequence[int]]]) -> Any:
    """The pairs as training reads them."""
    import numpy as np

    from jaxalign.data.records import Example, ExampleSet

    def ids(tokens):
        return np.asarray(tokens, np.int32)

    return ExampleSet.from_examples(
        Example(ids(x["prompt_ids"]), (ids(x["chosen_ids"]), ids(x["rejected_ids"])), {}, f"pair {i}")
        for i, x in enumerate(pairs)
    )


def reference_columns(policy: Any, variables: Any, examples: Any, batch: int, plan: Any) -> Callable[[Any, int], dict]:
    """The pass of a cached reference, and what gives each example its values."""
    from jaxalign.training.reference_scorer import RowScorer, choose_rows

    shape, rows = choose_rows(
        examples.row_tokens.tolist(),
        examples.scored_tokens.tolist(),
        2,
        batch_size=batch,
        multiple=plan.batch_size,
        width=policy.config.width,
    )
    found = dict(RowScorer(policy, variables, shape, rows, plan)([examples[i] for i in range(len(examples))]))
    return lambda _, identity: {"reference_logps": found[identity]}


def weights(args: argparse.Namespace, folder: str, plan: Any) -> tuple[Any, Any]:
    """The policy and its variables on the device."""
    import jax

    from jaxalign.models.adapters import COLLECTION, Adapter, init_adapter
    from jaxalign.models.huggingface import load_policy
    from jaxalign.models.policy import build_policy

    chosen = {"dtype": args.dtype, "param_dtype": args.weights, "remat": args.remat, "attention": args.attention}
    policy, variables = load_policy(folder, shardings=plan.sharding, constrain=plan.constrain, **chosen)
    if args.lora:
        adapter = Adapter(args.lora, 2.0 * args.lora)
        policy = build_policy(policy.config, constrain=plan.constrain, adapter=adapter, **chosen)
        shapes = policy.abstract()[COLLECTION]
        variables = variables | {COLLECTION: jax.jit(lambda key: init_adapter(key, shapes))(jax.random.key(0))}
    return policy, variables


def make_adamw(C: Any, args: argparse.Namespace, steps: int) -> Any:
    """AdamW as `jaxalign train` has it; with bfloat16 weights the moments are kept in bfloat16, as torch keeps them.

    Either way an update is computed in float32.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxalign.training.optimizer import make_optimizer

    adamw = make_optimizer("adamw", C.LR, "constant", steps, 0.0, weight_decay=0.0, clip_norm=C.CLIP)[0]
    if args.weights != "bfloat16" or args.lora:
        return adamw

    def cast(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def update(gradients, state, params=None):
        updates, state = adamw.update(gradients, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    return optax.GradientTransformation(lambda params: cast(adamw.init(params), jnp.bfloat16), update)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    C = shared_world(args.bench)
    C.use(args.setting)
    sampler = C.RssSampler()
    total = args.warmup + args.steps
    pairs = C.make_pairs(max(total, args.run) * C.BATCH, vocab=C.SETTINGS[args.setting]["vocab"])

    import jax
    import numpy as np

    from jaxalign.build.data import column_names
    from jaxalign.build.row_layout import lay_out, row_work
    from jaxalign.data.pipeline import OrderedBatches
    from jaxalign.data.row_shapes import MOST_PROGRAMS
    from jaxalign.methods import get_method
    from jaxalign.training import references
    from jaxalign.training.compiled import CompiledStep
    from jaxalign.training.mesh import make_mesh
    from jaxalign.training.state import create_state, state_shardings
    from jaxalign.training.step import make_train_step
    from jaxalign.training.trainable import adapters, full

    method, plan = get_method("dpo"), make_mesh()
    examples = example_set(pairs)
    with jax.set_mesh(plan.mesh):
        policy, variables = weights(args, C.model_dir(args.setting), plan)
        init_rss = C.rss_mb()
        attach = None
        if args.cached:
            shown = example_set(pairs[: total * C.BATCH])
            attach = reference_columns(policy, variables, shown, C.BATCH, plan)
            reference = references.cached()
        else:
            reference = references.shared(policy) if args.lora else references.frozen(policy)
        trainable = adapters() if args.lora else full()
        optimizer = make_adamw(C, args, total)

        def begin(variables):
            return create_state(variables, trainable, optimizer, reference, 0, method.state)

        places = plan.tree_shardings(policy.axes(), policy.abstract())
        shardings = state_shardings(jax.eval_shape(begin, policy.abstract())[0], places, plan.replicated)
        kept = not (args.cached or args.lora)  # the reference's own copy of the weights
        state, untrained = jax.jit(
            begin, donate_argnums=() if kept else 0, out_shardings=(shardings, trainable.split(places)[1])
        )(variables)
        frozen = {"policy": untrained, "reference": variables if kept else {}}
        del variables, untrained
        batches = OrderedBatches(examples, batch_size=C.BATCH, attach=attach)
        multiple = plan.batch_size * args.microbatches
        work = row_work(policy.config)
        layout = lay_out(batches, multiple, args.row_length, args.run, most=MOST_PROGRAMS, work=work)
        packer = layout.packer(column_names(method, reference.columns), plan.local_rows)
        step = CompiledStep(
            make_train_step(
                policy,
                method,
                reference,
                trainable,
                optimizer,
                options=method.resolve_options({"beta": C.BETA}),
                microbatches=args.microbatches,
            ),
            shardings,
            plan.replicated,
            lambda: packer.sizes(batches.example(0)),
        )
        decoder, trained = policy.config, sum(x.size for x in jax.tree.leaves(state.trainable))
        rate = matmul_rate(2048, decoder.width, decoder.mlp_width, args.dtype, seconds=args.matmul_seconds)
        wall, cpu = [time.perf_counter()], [time.process_time()]
        losses, logps, filled, places_ = [], [], 0, 0
        for i in range(total):
            if args.trace and i == args.warmup:
                jax.profiler.start_trace(args.trace)
            batch = packer(batches(i))
            state, told = step(state, frozen, plan.put_rows(batch.rows, batch.global_rows, batch.first_row))
            metrics = told.read().metrics
            jax.block_until_ready(state)
            wall.append(time.perf_counter())
            cpu.append(time.process_time())
            losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
            logps.append(float(metrics["logps/chosen"][0] / metrics["logps/chosen"][1]))
            filled, places_ = filled + batch.tokens, places_ + batch.places
            if i + 1 == args.warmup:
                sampler.mark()
        if args.trace:
            jax.profiler.stop_trace()
    seconds, used = np.diff(wall)[args.warmup :], np.diff(cpu)[args.warmup :]
    measured = [pairs[i * C.BATCH : (i + 1) * C.BATCH] for i in range(args.warmup, total)]
    useful = [useful_flops(decoder, x, live=not args.cached, adapters=trained if args.lora else 0) for x in measured]
    facts = step.facts()
    memory = jax.devices()[0].memory_stats() or {}
    C.summarise(
        seconds,
        [C.batch_tokens(x) for x in measured],
        sampler,
        framework="ours",
        setting=args.setting,
        compile_s=facts["seconds"],
        init_rss=init_rss,
        losses=losses[:3] + losses[-1:],
        logps=logps[:3],
        cpu_s=used.tolist(),
        useful_flops=float(np.mean(useful)),
        useful_per_s=float(np.median(np.array(useful) / seconds)),
        matmul_per_s=rate,
        fill=filled / places_,
        programs=facts["programs"],
        unexpected=facts["unexpected"],
        device=jax.devices()[0].device_kind,
        peak_device_mb=memory["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in memory else None,
        how=json.dumps({k: getattr(args, k) for k in ("dtype", "weights", "lora", "attention", "remat")}),
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(1, str(HERE.parent))  # a checkout that is not installed
    main()
