"""The quick start: a world, a model trained in it from scratch, its alignment, and what that changed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxalign import build
from jaxalign.config import from_dict
from jaxalign.data.synthetic import World, write_world
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.models.huggingface import load_policy
from jaxalign.quickstart.measure import ask, difference, examples, read_questions, summarise
from jaxalign.quickstart.numbers import number, percent, points, share
from jaxalign.quickstart.page import write_page
from jaxalign.quickstart.settings import ARCHITECTURE, sections
from jaxalign.training.metrics import read_metrics

NAMES = {"sft": "SFT", "dpo": "DPO"}


def run(workdir: str | Path, seed: int = 0) -> Path:
    """Runs the whole quick start and prints what it measured.

    Args:
      workdir: gets ``world/`` (data and tokenizer), ``sft/`` and ``dpo/`` (runs as of ``jaxalign train``),
        ``results.json`` and ``report.html``. A run that was interrupted goes on where it was.
      seed: of the world, of the initial weights and of the order of the data.

    Returns:
      The page.

    Raises:
      ConfigError: `workdir` holds the quick start of another seed or version.
    """
    workdir = Path(workdir)
    _check_world(workdir / "world", World(seed=seed))
    print(f"1/4  Writing a world with a known right answer to {workdir / 'world'}")
    files = write_world(workdir / "world", World(seed=seed))
    print(f"     {percent(files.summary['demonstrations_exact'])} of the demonstrations are right and to the point.")
    write_architecture(workdir / "start", files.summary["vocabulary"], load_tokenizer(files.tokenizer))
    seconds = {}
    for place, name, text in ((2, "sft", "the demonstrations (SFT)"), (3, "dpo", "the pairs (DPO)")):
        print(f"{place}/4  Training on {text}")
        started = time.perf_counter()
        build.train(from_dict(sections(name, workdir, seed)), workdir / name)
        seconds[name] = time.perf_counter() - started
    print("4/4  Asking both models the held-out questions")
    results = {"seed": seed, "world": files.summary, "seconds": seconds, **measure(workdir, seed)}
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    metrics = {name: read_metrics(workdir / name) for name in NAMES}
    page = write_page(workdir / "report.html", results, metrics)
    print(table(results))
    print(f"\nThe page with the plots: {page}")
    return page


def write_architecture(folder: Path, vocabulary: int, tokenizer: Any) -> None:
    """Writes the config.json that the model starts from."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = {**ARCHITECTURE, "vocab_size": vocabulary, "pad_token_id": tokenizer.pad_token_id, **ends}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def measure(workdir: Path, seed: int = 0) -> dict[str, Any]:
    """Measures both exported models on the world's held-out questions."""
    folders = {name: workdir / name / "export" for name in NAMES}
    tokenizer = load_tokenizer(folders["sft"])
    questions = read_questions(workdir / "world" / "questions.jsonl", tokenizer)
    policy, start = load_policy(str(folders["sft"]), dtype="float32")
    weights = {"sft": start, "dpo": load_policy(str(folders["dpo"]), dtype="float32")[1]}
    greedy, sampled = (
        {
            name: ask(policy, variables, questions, tokenizer, temperature=temperature, reference=start, seed=seed)
            for name, variables in weights.items()
        }
        for temperature in (0.0, 1.0)
    )
    return {
        "questions": len(questions),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(start)),
        "models": {name: summarise(greedy[name], sampled[name], questions) for name in NAMES},
        "difference": {
            "greedy": difference(greedy["sft"], greedy["dpo"]),
            "sampled": difference(sampled["sft"], sampled["dpo"]),
        },
        "examples": examples(questions, greedy),
    }


def _check_world(folder: Path, world: World) -> None:
    """Another world's files are not overwritten: the runs beside them were trained on them."""
    summary = folder / "world.json"
    if not summary.is_file():
        return
    found, expected = json.loads(summary.read_text(encoding="utf-8"))["world"], asdict(world)
    if found != expected:
        changed = [
            f"{name} was {found.get(name)!r}, is {value!r}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        raise ConfigError(
            f"--workdir: {folder.parent} holds another quick start ({'; '.join(changed) or 'of another version'}). "
            "Give another folder, or remove this one."
        )


def table(results: Mapping[str, Any]) -> str:
    """What was measured, as text for the terminal."""
    sft, dpo = (results["models"][name] for name in NAMES)
    rows = [("", *NAMES.values(), "difference")]
    for kind, text in (("greedy", "most probable answer"), ("sampled", "sampled at temperature 1")):
        change = points(results["difference"][kind])
        rows.append((f"exact match, {text}", share(sft[kind]["exact"]), share(dpo[kind]["exact"]), change))
    rows.append(("right, perhaps with chat, sampled", *(share(m["sampled"]["right"]) for m in (sft, dpo)), ""))
    rows.append(("tokens of an answer, sampled", *(number(m["sampled"]["length"]) for m in (sft, dpo)), ""))
    rows.append(("KL from SFT, nats an answer", "0", number(dpo["kl"]), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(len(line) for line in lines)
    took = ", ".join(f"{NAMES[name]} {value:.0f} s" for name, value in results["seconds"].items())
    return "\n".join(
        [
            "",
            f"{results['questions']} held-out questions, seed {results['seed']}; in brackets the 95 % interval",
            rule,
            *lines,
            rule,
            f"time of the stages: {took}",
        ]
    )
