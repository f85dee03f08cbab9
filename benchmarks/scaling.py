"""Memory and traffic of a chip from 8 to 256 chips under weak scaling, from programs compiled ahead of time. No TPU.

    python benchmarks/scaling.py [--targets=v5e:4x4,v5e:8x8] [--pairs-per-chip=4] [--out=scaling.json]

Every chip gets the same pairs, so with full sharding (FSDP) its traffic should stay flat while its memory falls to what
activations need. A 7 B program takes three minutes of a CPU core to compile, however many layers it has, since they are
a loop; with --out, what it holds already is not compiled again. Needs the extra `plan` (libtpu).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

TARGETS = "v5e:2x4,v5e:4x4,v5e:4x8,v5e:8x8,v5e:8x16,v5e:16x16"
GIB = 2**30


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--config", default="configs/paired.py:dpo,model=mistral_7b")
    parser.add_argument("--pairs-per-chip", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048, help="of a pair, all as long")
    parser.add_argument("--no-compile", action="store_true", help="from shapes alone")
    parser.add_argument("--out", metavar="FILE.json")
    args = parser.parse_args(argv)
    args.targets = args.targets.split(",")
    from jaxalign.errors import ConfigError
    from jaxalign.planning.targets import target

    problems = []
    for name in args.targets:
        try:
            target(name)
        except ConfigError as error:
            problems.append(f"argument --targets: {str(error).removeprefix('--target: ')}")
    if problems:
        parser.error("; ".join(problems))
    return args


def measure(args: argparse.Namespace, name: str) -> dict:
    from jaxalign.build.plan import plan
    from jaxalign.config import from_dict
    from jaxalign.config_transport import read
    from jaxalign.planning.targets import target

    machine = target(name)
    tree = read(args.config)
    tree["data"] = {**tree.get("data", {}), "train": ("none",)}
    tree["reference"] = {**tree.get("reference", {}), "mode": "cached"}
    tree["train"] = {**tree.get("train", {}), "batch_size": args.pairs_per_chip * machine.devices}
    tree["mesh"] = {"data": 1, "fsdp": -1, "tensor": 1}
    found = plan(from_dict(tree), machine, tokens=args.tokens, searching=False, compiling=not args.no_compile)
    compiled = found.compiled
    sent = (compiled.sent or {}).get("fsdp", {}) if compiled is not None and compiled.fits else {}
    return {
        "target": machine.name,
        "chips": machine.devices,
        "pairs": args.pairs_per_chip * machine.devices,
        "fits": found.fits,
        "estimated": found.estimate.total,
        "compiled": None if compiled is None else compiled.total,
        "arguments": compiled.arguments if compiled is not None and compiled.fits else None,
        "temporary": compiled.temporary if compiled is not None and compiled.fits else None,
        "sent": sent,
        "seconds": None if compiled is None else compiled.seconds,
    }


def table(rows: list[dict]) -> None:
    heads = ["chips", "pairs", "memory, GiB"]
    compiled = any(row["compiled"] is not None for row in rows)
    if compiled:  # what shapes alone do not tell
        heads += ["arguments", "temporaries", "estimated", "sent by a chip, GB", "of these"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in sorted(rows, key=lambda row: row["chips"]):
        size = row["compiled"] if row["compiled"] is not None else row["estimated"]
        cells = [str(row["chips"]), str(row["pairs"]), f"{size / GIB:.2f}{'' if row['fits'] else ', does not fit'}"]
        if compiled:
            cells += ["" if row[part] is None else f"{row[part] / GIB:.2f}" for part in ("arguments", "temporary")]
            kinds = sorted(row["sent"].items(), key=lambda kind: -kind[1])
            cells += [f"{row['estimated'] / GIB:.2f}", f"{sum(row['sent'].values()) / 1e9:.1f}" if kinds else ""]
            cells += [", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in kinds)]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    args = arguments()
    os.environ["JAX_PLATFORMS"] = "cpu"
    out = Path(args.out) if args.out else None
    key = [args.config, args.pairs_per_chip, args.tokens, args.no_compile]
    rows: list[dict] = []
    if out is not None and out.is_file():
        kept = json.loads(out.read_text())
        rows = kept["rows"] if kept["key"] == key else []
    for name in args.targets:
        if any(row["target"] == name for row in rows):
            continue
        rows.append(measure(args, name))
        if rows[-1]["seconds"] is not None:
            print(f"{name}: {rows[-1]['seconds']:.0f} s", flush=True)
        if out is not None:
            out.write_text(json.dumps({"key": key, "rows": rows}, indent=2) + "\n")
    import jax

    memory = ", memory estimated from shapes" if args.no_compile else ""
    load = f"{args.config}, {args.pairs_per_chip} pairs of {args.tokens} tokens a chip{memory}"
    print(f"\n{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, {platform.machine()}: {load}\n")
    table(rows)


if __name__ == "__main__":
    main()
