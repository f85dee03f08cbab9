"""How full rows are, and what packing costs the host: levelled rows beside rows of one length, on real token lengths.

    python benchmarks/packing.py [--shared=FOLDER] [--batches=40] [--steps=2000]
    python benchmarks/packing.py --runs        # what laying out a run costs before it starts, and gives

Data: pairs of UltraFeedback (token lengths from FOLDER/bench/lengths.json, each text cut to 512), HH, TL;DR and
OpenAssistant rankings (FOLDER/data, GPT-2's tokens, cut to 1,024); whatever is absent is left out, and lengths of a
log-normal law always come first. Three ways to pack the same batches:

- first fit: rows as long as the longest example, examples in the order in which they come;
- best fit: longest first into the fullest row, the best of five row lengths, two row counts;
- levelled: what training does.

`fill` is unique tokens over token places, `scored` scored tokens over slots, `work` the padded work over that without
padding (a scored slot counts as --scored tokens). `sizes`, the programs to compile, and milliseconds, processor time of
one process that writes all rows (medians over the batches), are those of the levelled rows. A run of --steps steps
decides how many sizes pay.

--runs lays out runs of 100 to 20,000 steps over 60,000 pairs of log-normal lengths as training does, and packs up to
500 batches spread over each.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxalign.build.row_layout import lay_out
from jaxalign.data.examples import load_examples
from jaxalign.data.pipeline import ShuffledBatches
from jaxalign.data.records import ExampleSet
from jaxalign.data.row_plans import RowPlan, RowProgram, RowShape, place
from jaxalign.data.row_shapes import Work, choose_programs, round_length
from jaxalign.data.rows import build_rows

HEADS = (
    "| data | pairs a step | devices | fill: first fit | best fit | levelled | scored fill: first fit | best fit "
    "| levelled | work: first fit | best fit | levelled | sizes | plan + build, ms |"
)

Plan = tuple[RowProgram, RowPlan]


def synthetic(count: int = 1000) -> np.ndarray:
    """Prompt and two answers, log-normal, cut to 512 tokens each."""
    lengths = np.random.default_rng(0).lognormal([4.4, 5.2, 5.2], [1.0, 0.9, 0.9], (count, 3))
    return lengths.astype(int).clip(1, 512)


def of_lengths(lengths: np.ndarray) -> ExampleSet:
    """Examples of those lengths; what the tokens are does not matter."""
    segments = [np.full(length, 7, np.int32) for length in lengths.reshape(-1)]
    return ExampleSet.from_segments(segments, completions=lengths.shape[1] - 1)


def data_sets(shared: Path) -> Iterator[tuple[str, ExampleSet]]:
    """The sets that are there."""
    yield "log-normal", of_lengths(synthetic())
    lengths = shared / "bench" / "lengths.json"
    if lengths.is_file():
        found = np.array(json.loads(lengths.read_text())["ultrafeedback"])
        yield "ultrafeedback", of_lengths(found.clip(1, 512))
    data = shared / "data"
    if not (data / "tok-gpt2").is_dir():
        return
    tokenizer = gpt2(data / "tok-gpt2")
    hh = data / "pref-hh-harmless" / "test.jsonl.gz"
    if hh.is_file():
        yield "hh", load_examples(hh, tokenizer, max_length=1024, on_bad="drop", tolerance=1.0)[0]
    tldr = data / "pref-tldr-judged"
    if tldr.is_dir():
        prompts = {row["id"]: row["prompt"] for row in read(tldr / "prompts.jsonl.gz")}
        pairs = [(prompts[row["prompt"]], row["a"], row["b"]) for row in read(tldr / "pairs.jsonl.gz")]
        texts = [text for pair in pairs[:2000] for text in pair]
        ids = tokenizer(texts)["input_ids"]
        yield "tldr", of_lengths(np.array([min(len(each) + 1, 512) for each in ids]).reshape(-1, 3))
    oasst = data / "pref-oasst-trees" / "en_100_tree.jsonl.gz"
    if oasst.is_file():
        options = {"layout": "ranked", "chat_template": "chatml", "max_length": 1024}
        yield "oasst, ranked", load_examples(oasst, tokenizer, on_bad="drop", tolerance=1.0, **options)[0]


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def gpt2(folder: Path):
    """The tokenizer of GPT-2, from its vocabulary and merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = json.loads(gzip.decompress((folder / "vocab.json.gz").read_bytes()))
    lines = gzip.decompress((folder / "merges.txt.gz").read_bytes()).decode().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end)


def packed(batch, length: int, *, best: bool) -> list[list[int]]:
    """Rows of one length, by first fit in the given order, or by best fit of the longest first."""
    tokens, _ = batch
    rows: list[list[int]] = []
    free: list[int] = []
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)) if best else range(len(tokens))
    for i in order:
        fits = [row for row, left in enumerate(free) if left >= tokens[i]]
        if not fits:
            rows.append([])
            free.append(length)
        row = (min(fits, key=lambda row: free[row]) if best else fits[0]) if fits else len(rows) - 1
        rows[row].append(i)
        free[row] -= tokens[i]
    return rows


def one_length(batches, multiple: int, *, best: bool) -> Callable[..., Plan]:
    """Packing in rows of one length; S and E are what any row of the batches needs."""
    longest = max(max(tokens) for tokens, _ in batches)
    trials = []
    for factor in (1, 1.25, 1.5, 2, 3) if best else (1,):
        length = round_length(int(longest * factor))
        rows = [packed(batch, length, best=best) for batch in batches]
        trials.append((sum(map(len, rows)) * length, length, rows))
    least = min(trials)[0]
    _, length, planned = next(trial for trial in trials if trial[0] <= 1.03 * least)
    slots = max(sum(s[i] for i in row) for (_, s), rows in zip(batches, planned, strict=True) for row in rows)
    shape = RowShape(length, round_length(slots), max(len(row) for rows in planned for row in rows), 0)
    needs = [-(-len(rows) // multiple) * multiple for rows in planned]
    counts = sorted({int(np.quantile(needs, q, method="higher")) for q in ((0.5, 1.0) if best else (1.0,))})

    def plan(tokens, scored) -> Plan:
        rows = packed((tokens, scored), length, best=best)
        count = next(count for count in counts if count >= len(rows))
        return RowProgram(count, shape), RowPlan(tuple(map(tuple, rows)), sum(tokens), sum(scored))

    return plan


def levelled(batches, completions: int, multiple: int, steps: int, work: Work) -> Callable[..., Plan]:
    """Packing as training does it."""
    programs = choose_programs(batches, completions, multiple, steps=steps, work=work)
    return lambda tokens, scored: place(tokens, scored, programs, multiple)


def measure(plan: Callable[..., Plan], examples: ShuffledBatches, count: int, work: Work) -> dict:
    """Fill, work and processor time of a way to pack, over the first batches."""
    sums = np.zeros(6)
    sizes, planning, building = set(), [], []
    completions = examples.examples.completions
    for step in range(count):
        tokens, scored = examples.sizes(step)
        started = time.process_time()
        (rows, shape), found = plan(tokens, scored)
        planning.append(time.process_time() - started)
        sizes.add((rows, *shape[:3]))
        batch = examples(step)
        content = [[batch[i] for i in row] for row in found.rows]
        content += [[] for _ in range(rows - len(content))]
        started = time.process_time()
        build_rows(content, shape._replace(completions=completions))
        building.append(time.process_time() - started)
        ideal = sum(tokens) + work.scored * sum(scored)
        padded = rows * (shape.tokens + work.scored * shape.scored)
        sums += (sum(tokens), rows * shape.tokens, sum(scored), rows * shape.scored, padded, ideal)
    return {
        "fill": sums[0] / sums[1],
        "scored": sums[2] / sums[3],
        "work": sums[4] / sums[5],
        "sizes": sorted(sizes),
        "plan_ms": 1e3 * statistics.median(planning),
        "build_ms": 1e3 * statistics.median(building),
    }


def lay_out_runs(work: Work) -> None:
    """Prints what each run's layout costs, and how full its rows are."""
    examples = of_lengths(synthetic(60_000))
    print("| pairs a step | devices | steps | processor s | sizes | fill | batches that fit no size |")
    print("|---|---|---|---|---|---|---|")
    for (batch_size, parallel), steps in itertools.product(((8, 1), (32, 1), (64, 8), (512, 64)), (100, 2000, 20_000)):
        batches = ShuffledBatches(examples, batch_size=batch_size, seed=0)
        started = time.process_time()
        layout = lay_out(batches, parallel, steps=steps, work=work)
        taken = time.process_time() - started
        tokens, places, others = 0, 0, 0
        looked_at = np.linspace(0, steps - 1, min(steps, 500)).astype(int).tolist()
        for step in looked_at:
            program, plan = place(*batches.sizes(step), layout.programs, parallel)
            tokens, places = tokens + plan.tokens, places + program.rows * program.shape.tokens
            others += program not in layout.programs
        told = f"{len(layout.programs)} | {100 * tokens / places:.1f} % | {others} of {len(looked_at)} |"
        print(f"| {batch_size} | {parallel} | {steps:,} | {taken:.1f} | {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scored", type=float, default=0.1, help="work of a scored slot, in tokens")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=(8, 32, 64, 128))
    parser.add_argument("--parallel", type=int, nargs="*", default=(1, 8, 64), help="devices that share the rows")
    parser.add_argument("--runs", action="store_true", help="lay out whole runs instead")
    args = parser.parse_args()
    work = Work(scored=args.scored)
    if args.runs:
        lay_out_runs(work)
        return
    print(HEADS + "\n" + "|---" * HEADS.count(" | ") + "|---|")
    for name, examples in data_sets(args.shared):
        for batch_size, parallel in itertools.product(args.batch_sizes, args.parallel):
            if batch_size < parallel or batch_size > len(examples):
                continue
            batches = ShuffledBatches(examples, batch_size=batch_size, seed=0)
            sizes = [batches.sizes(step) for step in range(args.batches)]
            ways = {
                "first fit": one_length(sizes, parallel, best=False),
                "best fit": one_length(sizes, parallel, best=True),
                "levelled": levelled(sizes, examples.completions, parallel, args.steps, work),
            }
            found = [measure(plan, batches, args.batches, work) for plan in ways.values()]
            cells = [name, str(batch_size), str(parallel)]
            cells += [f"{100 * way[key]:.0f} %" for key in ("fill", "scored") for way in found]
            cells += [f"{way['work']:.2f}" for way in found]
            cells += [str(len(found[-1]["sizes"])), f"{found[-1]['plan_ms']:.1f} + {found[-1]['build_ms']:.1f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
