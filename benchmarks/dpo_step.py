"""A DPO step of ours beside TRL's, Tunix's and EasyDeL's: the same model, pairs, order and losses, in one run.

    python benchmarks/dpo_step.py --trl-python=PYTHON --tunix-python=PYTHON --easydel-python=PYTHON \
        [--setting=small,medium,real] [--modes=live,cached] [--rounds=3] [--warmup=2] [--steps=4] [--out=FILE.jsonl]
    python benchmarks/dpo_step.py --device=gpu --trl-python=PYTHON [--setting=0.5b,8b] [--modes=cached,live]
    python benchmarks/dpo_step.py --tiny --peers=            # whether it runs: ours alone, small shapes

Frameworks take turns, each in a process of its own, and ratios are made within a round: a quiet machine is needed, and
the load is told. `live` computes the reference in each step, `cached` before training (TRL and EasyDeL: precomputed,
Tunix has no such mode). Padding or packing, and the transfer, are inside the timed steps of all.

Models have random weights; `small` (11 M parameters beside the embedding), `medium` and `real` (UltraFeedback's
lengths) are those of the shared benchmark, whose files and scripts are used where its folder is beside the repository
(or in --bench, or $BENCH); else those of benchmarks/peers are. A framework that its Python has not is left out.

On a GPU, `0.5b` has Qwen2-0.5B's shape (all weights are trained; weights and moments are float32, the arithmetic is
bfloat16) and `8b` Llama-3-8B's (adapters of rank 16 on all projections of a bfloat16 base; with --train=full all
weights, which then are bfloat16, as the moments are). A prompt with a response has 1,024 to 2,048 tokens. Optimizer and
precision are the same on both sides; TRL runs with and without checkpointing, and the better one counts. The share of
the peak (MFU) is of useful FLOPs, TRL's too. Not run on a GPU yet. Tunix and EasyDeL are compared on a CPU only.

Useful FLOPs: forward and backward over unique tokens, the head over scored ones, the reference's forward where it is
live. `matmul` is the rate of products of the model's shape, measured in our process just before its steps.
The table's last columns are ours divided by theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
CPU_SETTINGS, GPU_SETTINGS = ("small", "medium", "real"), ("0.5b", "8b")
AGREE = {"cpu": 1e-5, "gpu": 5e-2}
"""Largest difference of the losses of the first steps, float32 and bfloat16: there a log-ratio of 1,000 tokens has an
error of some tenths of a nat, which beta = 0.1 makes some hundredths of the loss."""


class Peer(NamedTuple):
    """A framework, the module that shows whether it is installed, and its options in each mode."""

    file: str
    module: str
    modes: Mapping[str, Sequence[str]]


BOTH = {"live": (), "cached": ("--precompute",)}
PEERS = {
    "trl": Peer("trl", "trl", BOTH),
    "trl+gc": Peer("trl", "trl", {"live": ("--gc",), "cached": ("--gc", "--precompute")}),
    "tunix": Peer("tunix", "tunix", {"live": ()}),
    "easydel": Peer("easydel", "easydel", BOTH),
    "easydel+chunk": Peer(
        "easydel", "easydel", {"live": ("--lmhead-chunk", "32"), "cached": ("--lmhead-chunk", "32", "--precompute")}
    ),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--setting", help=f"of {', '.join((*CPU_SETTINGS, *GPU_SETTINGS))}; default: the device's")
    parser.add_argument("--modes", default="live,cached")
    parser.add_argument(
        "--peers", help=f"of {', '.join(PEERS)}; default: trl,tunix,easydel,easydel+chunk, on a GPU trl,trl+gc"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="every process's result is appended")
    parser.add_argument("--bench", type=Path, help="folder of the shared benchmark; none = our own settings")
    parser.add_argument("--artifacts", type=Path, help="where models are written (or $BENCH_ARTIFACTS)")
    parser.add_argument("--trl-python", default=os.environ.get("PEERS_PYTHON"))
    parser.add_argument("--tunix-python", default=os.environ.get("PEERS_PYTHON"))
    parser.add_argument("--easydel-python", default=os.environ.get("EASYDEL_PYTHON"))
    parser.add_argument("--train", choices=("lora", "full"), help="on a GPU; default: 8b adapters, 0.5b all weights")
    parser.add_argument("--trl-micro", type=int, default=0, help="on a GPU: pairs that TRL takes at a time; 0 = all")
    parser.add_argument("--ours", default="", help="further options of dpo_step_ours.py, in one string")
    parser.add_argument("--timeout", type=float, default=3600.0, help="of a process, seconds")
    parser.add_argument("--tiny", action="store_true", help="the same path with small shapes")
    parser.add_argument("--table", type=Path, metavar="FILE.jsonl", help="print the table of earlier results only")
    args = parser.parse_args(argv)
    settings = args.setting or ",".join(GPU_SETTINGS if args.device == "gpu" else CPU_SETTINGS)
    if args.tiny and args.setting is None:
        settings = "tiny-0.5b,tiny-8b" if args.device == "gpu" else "tiny"
    args.setting = settings.split(",")
    args.modes = args.modes.split(",")
    peers = (
        ("trl,trl+gc" if args.device == "gpu" else "trl,tunix,easydel,easydel+chunk")
        if args.peers is None
        else args.peers
    )
    args.peers = [name for name in peers.split(",") if name]
    for name, given, known in (("mode", args.modes, BOTH), ("peer", args.peers, PEERS)):
        if set(given) - set(known):
            parser.error(f"unknown {name} {', '.join(set(given) - set(known))}; expected {', '.join(known)}")
    # The shared benchmark has no GPU settings.
    own = args.tiny or args.device == "gpu" or args.bench == Path("none")
    args.bench = None if own else bench_folder(args.bench)
    return args


def bench_folder(given: Path | None) -> Path | None:
    """The shared benchmark: given, named by the environment, or beside the repository; None where there is none."""
    named = given or (Path(os.environ["BENCH"]) if os.environ.get("BENCH") else None)
    folder = named or HERE.parents[1] / "shared" / "bench"
    if (folder / "common.py").is_file():
        return folder.resolve()
    if named:
        raise SystemExit(f"{named}: no common.py there")
    return None


def precision(args: argparse.Namespace, setting: str) -> list[str]:
    """Options that say what is trained in which type: the same for ours and TRL's."""
    if args.device == "cpu":
        return []
    train = args.train or ("lora" if setting.endswith("8b") else "full")
    if train == "lora":
        return ["--lora", "16", "--weights", "bfloat16"]
    return ["--weights", "bfloat16" if setting.endswith("8b") else "float32"]


def our_command(args: argparse.Namespace, setting: str, mode: str) -> list[str]:
    command = [sys.executable, str(HERE / "dpo_step_ours.py"), *["--cached"] * (mode == "cached")]
    command += ["--bench", str(args.bench)] if args.bench else []
    if args.device == "gpu":
        command += ["--dtype", "bfloat16", *precision(args, setting)]
        command += ["--remat", "dots"] if setting.endswith("8b") else []
        command += [] if args.tiny else ["--attention", "kernel"]  # what runs the tiny shapes may have no kernel
    return command + args.ours.split()


def peer_command(args: argparse.Namespace, name: str, setting: str, mode: str) -> tuple[list[str], Path]:
    """What runs a peer, and where."""
    peer = PEERS[name]
    folder, file = (args.bench, f"bench_{peer.file}.py") if args.bench else (HERE / "peers", f"{peer.file}_dpo.py")
    command = [getattr(args, f"{peer.file}_python"), file, *peer.modes[mode]]
    if args.device == "gpu":
        command += ["--device", "gpu", *precision(args, setting), "--micro", str(args.trl_micro)]
    return command, folder


def installed(args: argparse.Namespace, name: str) -> bool:
    """Whether its Python has the framework; says so where not."""
    peer = PEERS[name]
    python = getattr(args, f"{peer.file}_python")
    if python is None:
        print(f"{name}: left out, no --{peer.file}-python", flush=True)
        return False
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({peer.module!r}) is None)"
    found = subprocess.run([python, "-c", code], capture_output=True, env=environment(args, ours=False))
    if found.returncode:
        print(f"{name}: left out, {python} has no {peer.module} (pip install it there)", flush=True)
    return not found.returncode


def environment(args: argparse.Namespace, *, ours: bool) -> dict[str, str]:
    """That of a process. A peer's must not find our packages."""
    dropped = () if ours else ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    found = {k: v for k, v in os.environ.items() if k not in dropped}
    found |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "BENCH_ARTIFACTS": str(args.artifacts)}
    if args.device == "cpu":
        return found | {"JAX_PLATFORMS": "cpu"}
    # JAX takes three quarters of a GPU by itself, torch what it needs.
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"} | found


def run_one(args: argparse.Namespace, name: str, setting: str, mode: str) -> dict[str, Any] | None:
    """A process's result, or None with its last words."""
    command, folder = (our_command(args, setting, mode), HERE) if name == "ours" else (
        peer_command(args, name, setting, mode)
    )  # fmt: skip
    command += ["--setting", setting, "--warmup", str(args.warmup), "--steps", str(args.steps)]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(args, ours=name == "ours"), capture_output=True, text=True,
            timeout=args.timeout
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{setting} {mode} {name}: no result after {args.timeout:.0f} s", flush=True)
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(f"{setting} {mode} {name}: failed\n{(done.stdout + done.stderr)[-1500:]}", flush=True)
        return None
    return json.loads(lines[-1].removeprefix("RESULT "))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds."""
    args.artifacts = prepare(args)
    there = [name for name in args.peers if installed(args, name)]
    load = os.getloadavg()[0]
    if args.device == "cpu" and load > 0.5:
        print(f"load average {load:.1f}: other work runs here; quote figures from a quiet machine", flush=True)
    results: list[dict[str, Any]] = []
    for setting in args.setting:
        for mode in args.modes:
            names = ["ours", *(name for name in there if mode in PEERS[name].modes)]
            for number in range(args.rounds):
                for name in list(names):
                    found = run_one(args, name, setting, mode)
                    if found is None:
                        names.remove(name)  # it would fail again
                        continue
                    found |= {"label": name, "mode": mode, "round": number, "device": args.device,
                              "kind": found.get("device"), "date": time.strftime("%Y-%m-%d"),
                              "shared": bool(args.bench)}  # fmt: skip
                    results.append(found)
                    if args.out:
                        with args.out.open("a") as file:
                            file.write(json.dumps(found) + "\n")
                    print(f"{setting} {mode} {number} {name}: {found['step_s_median']:.3f} s a step, "
                          f"{found['pairs_per_s']:.2f} pairs/s, {found['cpu_s_median']:.2f} processor s, "
                          f"{found['peak_rss_mb']:.0f} MB, load {found['load1']:.1f}", flush=True)  # fmt: skip
    return results


def prepare(args: argparse.Namespace) -> Path:
    """Writes the checkpoints that are not there, and gives their folder."""
    sys.path[:0] = [str(HERE), str(HERE / "peers")]
    sys.path.append(str(HERE.parent))  # a checkout that is not installed
    import world
    from random_checkpoint import ensure_checkpoint

    folder = Path(args.artifacts or world.ART).resolve()
    for setting in args.setting:
        if setting not in world.SETTINGS:
            raise SystemExit(f"unknown setting {setting}; expected {', '.join(world.SETTINGS)}")
        wide = args.device == "cpu" or setting.endswith("0.5b")
        ensure_checkpoint(folder / f"hf_{setting}", world.SETTINGS[setting], "float32" if wide else "bfloat16")
    return folder


def ratios(mine: Sequence[Mapping], theirs: Sequence[Mapping], field: str) -> list[float]:
    """Ours over theirs, round by round."""
    by_round = {row["round"]: row[field] for row in theirs if row.get(field)}
    return [row[field] / by_round[row["round"]] for row in mine if row.get(field) and row["round"] in by_round]


def median(rows: Sequence[Mapping], field: str) -> float:
    """Of what the rounds say; nan where none says it."""
    found = [row[field] for row in rows if row.get(field) is not None]
    return statistics.median(found) if found else float("nan")


def peak_rate(kind: str | None) -> float | None:
    """Dense bfloat16 FLOPs a second of a GPU, by its name; None where it is not known."""
    from jaxalign.planning.targets import GPUS

    names = [name for name in GPUS if kind and name in kind.upper()]
    return GPUS[names[0]].flops if names else None


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each framework, and what follows from them, by setting and mode."""
    groups: dict[tuple[str, str], dict[str, list[Mapping]]] = {}
    for row in results:
        groups.setdefault((row["setting"], row["mode"]), {}).setdefault(row["label"], []).append(row)
    lines = [
        "| setting | mode | | pairs/s | step s, median (min..max) | CPU-s/step | compile s | peak MB | peak MB after "
        "warm-up | GPU peak MB | ours: pairs/s | ours: CPU-s | ours: peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    below = []
    for (setting, mode), by_name in groups.items():
        mine = by_name.get("ours", [])
        for name, rows in by_name.items():
            step = [row["step_s_median"] for row in rows]
            against = ["", "", ""]
            if name != "ours":
                fields = ("pairs_per_s", "cpu_s_median", "peak_rss_mb")
                against = [f"{statistics.median(r):.2f}x" if (r := ratios(mine, rows, f)) else "" for f in fields]
            gpu = median(rows, "peak_device_mb")
            lines.append(
                f"| {setting} | {mode} | {name} | {median(rows, 'pairs_per_s'):.2f} | {statistics.median(step):.3f} "
                f"({min(step):.3f}..{max(step):.3f}) | {median(rows, 'cpu_s_median'):.2f} | "
                f"{median(rows, 'compile_s'):.1f} | {median(rows, 'peak_rss_mb'):.0f} | "
                f"{median(rows, 'steady_peak_rss_mb'):.0f} | {'' if gpu != gpu else f'{gpu:.0f}'} | "
                f"{' | '.join(against)} |"
            )
        below += summary(setting, mode, by_name)
    return [*lines, "", *below]


def summary(setting: str, mode: str, by_name: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Ours against the best peer, and against the machine."""
    mine = by_name.get("ours", [])
    if not mine:
        return [f"{setting} {mode}: no result of ours."]
    useful, matmul = median(mine, "useful_per_s"), median(mine, "matmul_per_s")
    share = statistics.median(row["useful_per_s"] / row["matmul_per_s"] for row in mine)
    told = [
        f"{setting} {mode}: useful {useful / 1e9:.1f} GFLOP/s, matmul {matmul / 1e9:.1f} GFLOP/s, share {share:.0%}"
    ]
    told.append(f"rows {median(mine, 'fill'):.0%} full, {len(mine[0]['programs'])} compiled sizes")
    peak = peak_rate(mine[0].get("kind")) if mine[0].get("device") == "gpu" else None
    if peak:
        told.append(f"MFU {useful / peak:.0%}")
    peers = {name: rows for name, rows in by_name.items() if name != "ours"}
    if peers:
        best = max(peers, key=lambda name: median(peers[name], "pairs_per_s"))
        found = ratios(mine, peers[best], "pairs_per_s")
        told.append(f"{statistics.median(found):.2f}x ({min(found):.2f}..{max(found):.2f}) the best peer ({best})")
        if peak:
            theirs = median(mine, "useful_flops") / median(peers[best], "step_s_mean")
            told.append(f"{best}'s MFU {theirs / peak:.0%} ({peers[best][0].get('how')})")
    trl = [rows for name, rows in peers.items() if name.startswith("trl")]
    if trl:
        for field, what in (("peak_rss_mb", "peak memory"), ("steady_peak_rss_mb", "after warm-up"),
                            ("peak_device_mb", "GPU memory")):  # fmt: skip
            least = min(trl, key=lambda rows: median(rows, field))
            if found := ratios(mine, least, field):
                told.append(f"{what} {statistics.median(found):.2f}x TRL's")
    return ["; ".join(told) + "."]


def agreement(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Whether the losses of the first three steps are those of ours; with adapters, whose draws differ, the first."""
    lines, fine = [], True
    mine = {(r["setting"], r["mode"]): r for r in results if r["label"] == "ours"}
    seen = set()
    for row in results:
        key = row["setting"], row["mode"], row["label"]
        if row["label"] == "ours" or key in seen or key[:2] not in mine:
            continue
        seen.add(key)
        ours = mine[key[:2]]
        count = 1 if json.loads(ours.get("how", "{}")).get("lora") else 3
        pairs = list(zip(ours["losses"][:-1][:count], row["losses"][:-1][:count], strict=False))
        worst = max((abs(a - b) for a, b in pairs), default=float("nan"))
        same = worst <= AGREE[row["device"]]
        fine &= same
        told = f"{' '.join(key)}: first {len(pairs)} losses differ by at most {worst:.1e}"
        if not same:
            told += f", MORE THAN {AGREE[row['device']]:g}"
        if ours.get("logps") and row.get("logps"):
            apart = abs(ours["logps"][0] / row["logps"][0] - 1)
            told += f"; log p(chosen) of the first step by {apart:.1e} of itself"
        lines.append(told)
    return lines, fine


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    sys.path.append(str(HERE.parent))
    if args.table:
        results = [json.loads(line) for line in args.table.read_text().splitlines()]
    else:
        results = measure(args)
    if not results:
        raise SystemExit("no results")
    load = [row["load1"] for row in results]
    whose = "shared" if results[0].get("shared") else "own"
    print(f"\n{results[0].get('kind') or platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, "
          f"{whose} settings; {results[0]['date']}, load average {min(load):.1f}.."
          f"{max(load):.1f}; medians of {1 + max(row['round'] for row in results)} rounds of "
          f"{results[0]['steps']} steps")  # fmt: skip
    print("\n".join(table(results)))
    lines, fine = agreement(results)
    print("\n".join(lines))
    if not fine:
        raise SystemExit("the losses are not the same: these are not the same computations")


if __name__ == "__main__":
    main()
