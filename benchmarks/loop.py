"""What the training loop adds to the bare compiled step, whether data starve it, and how fast a run starts again.

    python benchmarks/loop.py [--model=small] [--steps=40] [--rounds=5]
    python benchmarks/loop.py --start [--model=small] [--steps=40] [--rounds=3]

The first alternates rounds of the bare step on one batch that lies on the device with rounds of the loop over all
batches, which packs, transfers, dispatches, reads metrics and writes them to disk. All batches have one size, so the
devices do the same. Processor seconds hold the packing, which has cores of its own where there are some.

The second starts processes that train one step of a written model, with an empty compilation cache and then with what
the first one left there, and tells what they spend until the step has been computed. A run of more steps compiles for
more sizes of rows, up to six.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def loop_over_bare(args: argparse.Namespace) -> None:
    """Alternates the bare step and the loop, and prints both."""
    import jax
    import numpy as np
    from small_run import Parts, frozen_reference, medians, timed

    from jaxalign.data.pipeline import training_iterator
    from jaxalign.training.loop import Progress, Schedule, run
    from jaxalign.training.metrics import MetricSinks, read_metrics
    from jaxalign.training.throughput import Throughput

    parts = Parts.of(args)
    with jax.set_mesh(parts.plan.mesh), tempfile.TemporaryDirectory() as folder:
        reference, frozen = frozen_reference(parts)
        batches, packer, step, state = parts.training(reference, args.steps)
        rows = parts.put(packer(batches(0)))

        def bare(state, steps):
            told = None
            for _ in range(steps):
                state, told = step(state, frozen, rows)
            assert told is not None
            return jax.block_until_ready((state, told.numbers))[0]

        def loop(state, steps):
            with MetricSinks(folder, total_steps=steps, tensorboard=False, progress=False) as sinks:
                return run(
                    state,
                    frozen,
                    step=step,
                    iterator=training_iterator(batches, packer, steps),
                    put_rows=parts.put,
                    schedule=Schedule(steps, 1.0, args.log_every, None, None),
                    progress=Progress(),
                    sinks=sinks,
                    checkpoints=None,
                    throughput=Throughput(),
                )

        state = bare(state, 3)
        state = loop(state, 3)
        seconds: dict[str, list[np.ndarray]] = {"bare step": [], "loop": []}
        waits: list[float] = []
        for _ in range(args.rounds):
            for name, call in (("bare step", bare), ("loop", loop)):
                taken, state = timed(lambda call=call, state=state: call(state, args.steps))
                seconds[name].append(taken / args.steps)
            told = [row["perf/data_wait"] for row in read_metrics(folder) if "perf/data_wait" in row]
            waits.append(statistics.mean(told))
        added = [(b - a) / a for a, b in zip(seconds["bare step"], seconds["loop"], strict=True)]
        size = f"R={rows.tokens.shape[0]} T={rows.tokens.shape[1]} S={rows.score_slot.shape[1]}"
        print(f"\n{jax.devices()[0].device_kind}, {args.model}, {args.batch} pairs a step ({size}), {args.dtype}, "
              f"{args.rounds} rounds of {args.steps} steps, metrics every {args.log_every}; load "
              f"{os.getloadavg()[0]:.1f}")  # fmt: skip
        print("| | wall ms/step | processor ms/step | waits for data |\n|---|---|---|---|")
        for name, rounds in seconds.items():
            wall, processor = medians(rounds)
            wait = f"{statistics.median(waits):.2%}" if name == "loop" else ""
            print(f"| {name} | {1e3 * wall:.2f} | {1e3 * processor:.2f} | {wait} |")
        wall, processor = medians(added)
        print(f"| added, median of the rounds | {wall:+.2%} | {processor:+.2%} | |")


CHILD = """
import functools, importlib, json, os, sys, time
def now():
    # The process began before its interpreter: its own clock says when.
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    uptime = float(open("/proc/uptime").read().split()[0])
    return [uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"), time.process_time()]
marks = {"interpreter": now()}
from jaxalign.cli.main import keep_compiled, main
keep_compiled()
import jaxalign.build
train = importlib.import_module("jaxalign.build.train")
marks["imports"] = now()
def after(name, call):
    @functools.wraps(call)
    def timed(*args, **more):
        found = call(*args, **more)
        marks[name] = now()
        return found
    return timed
train.check_data = after("data", train.check_data)
train.make_reference = after("reference", train.make_reference)
train.matmul_peak = after("matmul peak", train.matmul_peak)
compiled = train.CompiledStep
class Watched(compiled):
    def __init__(self, *args):
        super().__init__(*args)
        marks["state"] = now()
    def __call__(self, *args):
        state, told = super().__call__(*args)
        marks["compile"] = now()
        told.read()
        marks["first step"] = now()
        print(json.dumps(marks), flush=True)
        os._exit(0)
train.CompiledStep = Watched
main(sys.argv[1:])
"""


def start(args: argparse.Namespace) -> None:
    """Starts runs with an empty and with a filled compilation cache, and prints where their time goes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_world(folder, args)
        rounds: dict[str, list[dict[str, list[float]]]] = {"cold": [], "warm": []}
        for number in range(args.rounds):
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            for kind in rounds:
                # A sweep: another run of the same model and data, whose reference is known. `cold` computes it.
                rounds[kind].append(start_one(config, folder / f"{kind}-{number}", cache, args))
        stages = list(rounds["cold"][0])
        print(f"\nload {os.getloadavg()[0]:.1f}; medians of {args.rounds}; {args.model}, method {args.method}")
        print("| until | cold, wall s | cold, processor s | warm, wall s | warm, processor s |\n|---|---|---|---|---|")
        for stage in stages:
            cells = [statistics.median(r[stage][i] for r in rounds[kind]) for kind in rounds for i in (0, 1)]
            print(f"| {stage} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")


def start_one(config: Path, workdir: Path, cache: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds (wall, processor) from the start of a process to the end of each stage."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    environment |= {"JAXALIGN_CACHE": str(cache)}
    command = [sys.executable, "-c", CHILD, "train", f"--config={config}", f"--workdir={workdir}"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(found.stderr[-3000:])
    return json.loads(lines[-1])


def write_world(folder: Path, args: argparse.Namespace) -> Path:
    """A model with random weights, a tokenizer, pairs, and the configuration of a run over them."""
    import jax
    from small_run import SIZES
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from jaxalign.models.decoder_config import DecoderConfig
    from jaxalign.models.export import save_pretrained
    from jaxalign.models.policy import build_policy

    size = SIZES[args.model]
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, size["vocab_size"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    policy = build_policy(DecoderConfig(**size, max_positions=1024, tied_embeddings=False))
    save_pretrained(policy, policy.init(jax.random.key(0)), folder / "model", tokenizer=tokenizer)
    parts = [f"w{i % (size['vocab_size'] - 2) + 2}" for i in range(10_000)]

    def text(start: int, count: int) -> str:
        return " ".join(parts[start % 5000 : start % 5000 + count])

    lines = [
        {"prompt": text(97 * i, 40 + i % 64) + " ", "chosen": text(31 * i, 20 + i % 90), "rejected": text(7 * i, 60)}
        for i in range(args.pairs)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": {"path": str(folder / "model"), "dtype": args.dtype},
        "data": {"train": [str(folder / "pairs.jsonl")], "eval_size": 0},
        "method": {"name": args.method},
        "train": {"batch_size": args.batch, "steps": args.steps},
        "logging": {"progress": False, "tensorboard": False},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from small_run import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=40, help="a round; of a run that --start starts")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--start", action="store_true", help="measure starting instead")
    parser.add_argument("--method", default="dpo", help="of the runs that --start starts")
    args = parser.parse_args()
    started = time.perf_counter()
    (start if args.start else loop_over_bare)(args)
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
