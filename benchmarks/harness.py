"""Requests per second of our lm-eval backend beside lm-eval's own hf backend: the same requests, side by side.

    python benchmarks/harness.py --model=FOLDER --benchmarks=FOLDER [--limit=100] [--rounds=3]

Rounds alternate, so that other work on the machine hits both; medians are told. The hf backend gets, for each task, the
batch size that took it the least processor time. Compilation is left out of the rounds and told apart. A task that
generates (gsm8k) is asked for at most --new-tokens tokens. Needs the extras `benchmarks` and `judge`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

TASKS = (
    "arc_easy:0",
    "hellaswag:0",
    "boolq:0",
    "piqa:0",
    "truthfulqa_mc1:0",
    "mmlu_anatomy:0",
    "mmlu_anatomy:2",
    "leaderboard_bbh_sports_understanding:3",
    "gsm8k:0",
)


def requests_of(lm, task: str, shots: int, folder, limit: int):
    """What lm-eval asks of a task: the name of the method that answers, and the requests."""
    from jaxalign.evaluation.run_suite import run_suite
    from jaxalign.evaluation.suites import Benchmark, Suite

    found: dict[str, list] = {}

    def record(kind, answer):
        def recording(requests, **_):
            found[kind] = list(requests)
            return [answer] * len(requests)

        return recording

    lm.loglikelihood = record("loglikelihood", (0.0, False))
    lm.generate_until = record("generate_until", "")
    run_suite(
        lm,
        Suite(name="speed", summary="", benchmarks=(Benchmark(task=task, shots=shots),)),
        folder=folder,
        limit=limit,
    )
    del lm.loglikelihood, lm.generate_until
    (asked,) = found.items()
    return asked


def timed(answer, requests) -> tuple[float, float, list]:
    """Seconds, seconds of the processor (which other work on the machine changes less), and answers."""
    started, processor = time.perf_counter(), time.process_time()
    results = answer(requests, disable_tqdm=True)
    return time.perf_counter() - started, time.process_time() - processor, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--benchmarks", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="TASK:SHOTS")
    parser.add_argument("--hf-batches", type=int, nargs="*", default=(8, 32))
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16, help="of our generation")
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    from lm_eval.models.huggingface import HFLM

    from jaxalign.evaluation.benchmark_files import BenchmarkFolder
    from jaxalign.evaluation.harness import JaxalignLM

    options = f"pretrained={args.model},dtype=float32,overlong=cut,batch_tokens={args.batch_tokens}"
    ours = JaxalignLM.create_from_arg_string(f"{options},batch_size={args.batch_size}")
    ours.max_gen_toks = args.new_tokens

    class HF(HFLM):
        max_gen_toks = args.new_tokens

    theirs = {n: HF(pretrained=args.model, dtype="float32", device="cpu", batch_size=n) for n in args.hf_batches}
    folder = BenchmarkFolder(args.benchmarks)
    rows = []
    for spec in args.tasks:
        task, _, shots = spec.partition(":")
        kind, requests = requests_of(ours, task, int(shots), folder, args.limit)
        before = len(ours.scorer.counts.programs)
        first, _, answers = timed(getattr(ours, kind), requests)
        programs = len(ours.scorer.counts.programs) - before
        trials = {n: timed(getattr(hf, kind), requests)[1] for n, hf in theirs.items()}
        batch = min(trials, key=lambda n: trials[n])
        hf = theirs[batch]
        seconds: dict[str, list[float]] = {"ours": [], "hf": []}
        processor: dict[str, list[float]] = {"ours": [], "hf": []}
        counts = ours.scorer.counts
        row_tokens, padded, asked = counts.row_tokens, counts.padded_tokens, counts.request_tokens
        for _ in range(args.rounds):
            for name, answer in (("ours", getattr(ours, kind)), ("hf", getattr(hf, kind))):
                elapsed, used, expected = timed(answer, requests)
                seconds[name].append(elapsed)
                processor[name].append(used)
        scored = kind == "loglikelihood"
        both = list(zip(answers, expected, strict=True))
        # Largest difference of a log-likelihood; of generations, the part that differs.
        worst = max(abs(a[0] - b[0]) for a, b in both) if scored else sum(a != b for a, b in both) / len(both)
        own, other = (statistics.median(seconds[name]) for name in ("ours", "hf"))
        rows.append(
            {
                "task": task,
                "shots": int(shots),
                "requests": len(requests),
                "ours": len(requests) / own,
                "hf": len(requests) / other,
                "ratio": other / own,
                "processor": statistics.median(processor["hf"]) / statistics.median(processor["ours"]),
                "hf_batch": batch,
                "shared": (counts.request_tokens - asked) / (counts.row_tokens - row_tokens) if scored else 1.0,
                "fill": (counts.row_tokens - row_tokens) / (counts.padded_tokens - padded) if scored else 1.0,
                "programs": programs,
                "compile_s": max(0.0, first - own),
                "worst": worst,
                "load": os.getloadavg()[0],
            }
        )
        print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    print(
        "\n| task | shots | requests | ours /s | hf /s | hf batch | ratio | processor time | tokens saved | row fill |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        speeds = f"{r['ours']:.3g} | {r['hf']:.3g} | {r['hf_batch']} | {r['ratio']:.1f} | {r['processor']:.1f}"
        print(f"| {r['task']} | {r['shots']} | {r['requests']} | {speeds} | {r['shared']:.1f}x | {r['fill']:.2f} |")
    total = {name: sum(r["requests"] / r[name] for r in rows) for name in ("ours", "hf")}
    print(f"programs: {len(ours.scorer.counts.programs)}, compiled in {sum(r['compile_s'] for r in rows):.0f} s")
    print(f"all: {total['hf'] / total['ours']:.2f}x the requests per second; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
