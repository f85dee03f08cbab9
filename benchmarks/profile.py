"""Where the time of a train step goes: a trace of a few steps, and a table by kind of operation.

    python benchmarks/profile.py [--setting=small] [--cached] [--steps=3] [--out=FOLDER] [--names=25]
    python benchmarks/profile.py --read=FOLDER                # the table of a trace that is there

The steps are those of dpo_step.py. The trace in FOLDER opens in Perfetto (ui.perfetto.dev) and in XProf. Times are the
clock's between an operation's start and end on the thread or stream that it belongs to, without what it calls (a loop's
body); on a CPU several operations may run at once.
"""

from __future__ import annotations

import sys

if __name__ == "profile":
    # This folder stands first on the path of the other benchmarks, where cProfile, which torch loads, looks for the
    # standard library's module of this name.
    import importlib.util
    import sysconfig

    _spec = importlib.util.spec_from_file_location("profile", sysconfig.get_path("stdlib") + "/profile.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["profile"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["profile"])

import argparse
import collections
import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Event(NamedTuple):
    """An operation on a thread or a stream, nanoseconds."""

    line: str
    name: str
    start: float
    duration: float


def own_times(events: Iterable[Event]) -> list[tuple[str, float]]:
    """Name and time of each event without the events of its line that lie inside it."""
    by_line = collections.defaultdict(list)
    for event in events:
        by_line[event.line].append(event)
    found: list[tuple[str, float]] = []
    for line in by_line.values():
        open_: list[list] = []  # (end, name, own time) of the events around the present one
        for event in sorted(line, key=lambda e: (e.start, -e.duration)):
            while open_ and open_[-1][0] <= event.start:
                _, name, own = open_.pop()
                found.append((name, own))
            if open_:
                open_[-1][2] -= event.duration
            open_.append([event.start + event.duration, event.name, event.duration])
        found += [(name, own) for _, name, own in open_]
    return found


def kind(name: str) -> str:
    """The operation without its number: ``dot.12`` is a matmul, ``loop_add_fusion.3.clone`` an ``add fusion``."""
    own = name.partition(" = ")[0].removeprefix("%")  # a TPU tells the whole line of the program
    plain = re.sub(r"(\.\d+|\.clone|\.remat\d*|_kernel)+$", "", own)
    if plain in ("dot", "dot_general", "convolution") or re.search("gemm|cutlass|cublas|nvjet", plain):
        return "matmul"
    if plain.startswith("ynn_"):
        return "matmul and what is fused with it"
    plain = re.sub(r"^(loop|input|wrapped)_", "", plain)
    return re.sub(r"_fusion$", " fusion", plain)


def is_operation(line: str, name: str) -> bool:
    """Whether an event of the host is an operation of XLA, not one of Python's or the runtime's, nor a wait."""
    return not (
        line == "python"
        or name.startswith(("$", "end: ", "Thread", "Pjit", "Py", "Wait", "ThunkExecutor", "TfrtCpu", "PjRt", "thunk"))
        or "::" in name
        or " " in name
    )


def read(folder: Path) -> list[Event]:
    """The operations of the newest trace below a folder: of the accelerators where it has any, else of the host."""
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"{folder}: no trace (*.xplane.pb) there")
    planes = list(ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    found = []
    for plane in devices or planes:
        lines = list(plane.lines)
        # A TPU tells its operations, its steps and its modules on lines of their own: one of them is enough.
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        for index, line in enumerate(lines):
            for event in line.events:
                if devices or is_operation(line.name, event.name):
                    at = f"{plane.name} {index} {line.name}"
                    found.append(Event(at, event.name, event.start_ns, event.duration_ns))
    return found


def totals(times: Iterable[tuple[str, float]]) -> list[tuple[str, float, int]]:
    """Name, time and count, the longest first."""
    sums: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for name, duration in times:
        sums[name] += duration
        counts[name] += 1
    return [(name, duration, counts[name]) for name, duration in sums.most_common()]


def table(title: str, rows: Sequence[tuple[str, float, int]], steps: int, most: int) -> list[str]:
    """Lines of Markdown; shares are of all rows, shown or not."""
    whole = sum(duration for _, duration, _ in rows) or 1.0
    lines = [f"| {title} | ms a step | share | times a step |", "|---|---|---|---|"]
    for name, duration, count in rows[:most]:
        lines.append(f"| {name[:70]} | {duration / 1e6 / steps:.2f} | {duration / whole:.1%} | {count / steps:g} |")
    return [*lines, f"| all {len(rows)} | {whole / 1e6 / steps:.2f} | | |"]


def summary(found: Mapping[str, Any], cached: bool) -> str:
    """What was traced, in a line. FLOPs are useful ones, as docs/performance.md counts them."""
    return (
        f"{found['setting']}, {'cached' if cached else 'live'} reference, {found['device']}: "
        f"{found['step_s_median']:.3f} s a step (median of {found['steps']}, with the trace's own cost), "
        f"{found['pairs_per_s']:.2f} pairs/s, {found['useful_per_s'] / 1e9:.1f} useful GFLOP/s, products of the "
        f"model's shape {found['matmul_per_s'] / 1e9:.1f} GFLOP/s, rows {found['fill']:.0%} full; "
        f"load {found['load1']:.1f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sys.path[:0] = [str(HERE), str(HERE / "peers")]
    sys.path.append(str(HERE.parent))  # a checkout that is not installed
    import world

    parser.add_argument("--setting", default="small", choices=world.SETTINGS)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("trace"))
    parser.add_argument("--names", type=int, default=25, help="lines of each table")
    parser.add_argument("--read", type=Path, metavar="FOLDER")
    args, more = parser.parse_known_args(argv)
    if args.read is None:
        import dpo_step_ours
        from random_checkpoint import ensure_checkpoint

        ensure_checkpoint(world.model_dir(args.setting), world.SETTINGS[args.setting])
        options = ["--setting", args.setting, "--warmup", str(args.warmup), "--steps", str(args.steps)]
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            dpo_step_ours.main([*options, *["--cached"] * args.cached, "--trace", str(args.out), *more])
        print(summary(json.loads(told.getvalue().rpartition("RESULT ")[2]), args.cached))
    times = own_times(read(args.read or args.out))
    for title, rows in (("kind", [(kind(name), time) for name, time in times]), ("operation", times)):
        print("\n" + "\n".join(table(title, totals(rows), args.steps, args.names)))


if __name__ == "__main__":
    main()
