"""Stands in for the process of a row: ``behaviour.json`` in the workdir tells it what to do, and it imports little."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

arguments = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
workdir, name = Path(arguments["workdir"]), arguments.get("row", "shared")
told = json.loads((workdir / "behaviour.json").read_text())
mine = {**told["all"], **told.get(name, {})}


def note(**facts) -> None:
    with open(workdir / "seen.jsonl", "a") as file:
        file.write(json.dumps({"row": name, "time": time.time(), **facts}) + "\n")


note(event="started", gpus=os.environ.get("CUDA_VISIBLE_DEVICES"), job=os.environ.get("JAXALIGN_STUDY_CHILD"))
for stage, key in mine["stages"]:
    folder = workdir / "stages" / f"{stage}-{key}"
    doing = {"line": f"training {stage}", "what": f"training {stage}", "key": key}
    (workdir / "logs" / f"{name}.doing.json").write_text(json.dumps(doing))
    if (folder / "manifest.json").exists() or folder.with_name(folder.name + ".failed.json").exists():
        continue
    note(event="stage started", stage=stage, key=key)
    time.sleep(mine.get("seconds", 0))
    if mine.get("dies") == stage:
        print("a last line", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mine.get("exits") == stage:
        sys.exit("something is wrong")
    if mine.get("stopped") == stage:
        times = workdir / f"{name}.stopped"
        times.write_text(f"{int(times.read_text()) + 1 if times.exists() else 1}")
        if int(times.read_text()) < mine["times"]:
            sys.exit(143)
    if mine.get("waits") == stage:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (workdir / f"{name}.waits").touch()
        while os.getppid() != 1:
            time.sleep(0.05)
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "config.json").write_text("{}")
    (folder / "export" / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text('{"status": "done"}')
    note(event="stage done", stage=stage, key=key)
if "key" in mine:
    row = {"row": name, "key": mine["key"], "labels": {}, "status": "done", "study": {"headline": "m/x"}, "seconds": 1}
    (workdir / "rows").mkdir(exist_ok=True)
    (workdir / "rows" / f"{name}.json").write_text(json.dumps(row | {"results": {}}))
if mine.get("dies") == "after":
    os.kill(os.getpid(), signal.SIGKILL)
