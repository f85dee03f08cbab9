"""Runs a suite through lm-eval, on the hub's data or on local files, and makes an outcome of what it finds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError, DataError, did_you_mean
from jaxalign.evaluation.benchmark_files import DATA, BenchmarkFolder, data_of
from jaxalign.evaluation.harness import JaxalignLM
from jaxalign.evaluation.harness_results import make_outcome
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.suites import Benchmark, Suite

MMLU_SUBJECTS = 57
SPLIT_FIELDS = ("training_split", "validation_split", "test_split", "fewshot_split")


def run_suite(
    lm: JaxalignLM,
    suite: Suite,
    *,
    folder: BenchmarkFolder | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    system: str | None = None,
    out: str | Path | None = None,
    model_name: str = "model",
) -> Outcome:
    """Measures a model on the benchmarks of a suite.

    Args:
      lm: the model.
      suite: the benchmarks.
      folder: where their files are; None = the hub.
      limit: the first so many documents of each task (of each subject of MMLU); None = all.
      shots: examples in the prompt of every benchmark, instead of the suite's; noted as another protocol.
      chat: put prompts into the model's chat template, examples as turns of the conversation.
      system: the system's message.
      out: where lm-eval's ``results_*.json`` and ``samples_*.jsonl`` are written; None = nowhere.
      model_name: for the names of these files.

    Returns:
      Metrics ``"TASK/METRIC"`` (with lm-eval's filter where it has one: ``"gsm8k/exact_match,strict-match"``),
      ``"mmlu/acc"`` weighted by the sizes of the subjects and ``"mmlu/acc_unweighted"``, and ``"average"`` of the
      headline metrics, each in the suite's own way.

    Raises:
      ConfigError: a task is unknown, or the model has no chat template.
      DataError: data are missing, or contexts are too long (see `JaxalignLM`).
    """
    manager = _task_manager()
    notes: list[str] = []
    if chat and not lm.tokenizer.chat_template:
        raise ConfigError("--chat: the model's tokenizer has no chat template. Leave it out, or align with one.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: got {limit}, expected at least 1.")
    entries = list(_entries(suite, manager, folder, shots, notes))
    lm.cut.clear()
    found = _simple_evaluate(lm, manager, entries, suite, limit, chat, system, out, model_name, folder)
    return make_outcome(
        found, suite, lm=lm, notes=[*notes, *_choices(suite)], limit=limit, chat=chat, system=system, shots=shots
    )


def _task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own files
        return TaskManager()


def _entries(
    suite: Suite, manager: Any, folder: BenchmarkFolder | None, shots: int | None, notes: list[str]
) -> Iterator[dict[str, Any]]:
    """The members of the inline group: what makes lm-eval merge overrides into its official tasks."""
    problems: list[str] = []
    for benchmark in suite.benchmarks:
        if benchmark.task not in manager.all_tasks:
            near = did_you_mean(benchmark.task, manager.all_tasks)
            problems.append(f"{benchmark.task}: lm-eval has no such task.{near}")
            continue
        wanted = benchmark.shots if shots is None else shots
        if shots is not None and shots != benchmark.shots:
            notes.append(f"{benchmark.task}: {shots} shots instead of the suite's {_shown(benchmark.shots)}.")
        settings: dict[str, Any] = {} if wanted is None else {"num_fewshot": wanted}
        if benchmark.fewshot_split:
            settings["fewshot_split"] = benchmark.fewshot_split
        try:
            yield from (
                _local(benchmark, manager, folder, settings, notes)
                if folder
                else [{"task": benchmark.task, **settings}]
            )
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems) if folder else ConfigError(problems)


def _shown(shots: int | None) -> str:
    return "own number" if shots is None else str(shots)


def _local(
    benchmark: Benchmark, manager: Any, folder: BenchmarkFolder, settings: Mapping[str, Any], notes: list[str]
) -> list[dict[str, Any]]:
    """A benchmark on files: an entry for it, or for each subject of MMLU that the folder has."""
    if benchmark.task == "mmlu":
        subjects = folder.subsets("mmlu", "subject", "test")
        if len(subjects) < MMLU_SUBJECTS:
            notes.append(f"mmlu: {len(subjects)} of {MMLU_SUBJECTS} subjects are in {folder.folder.name}.")
        return [_local_task(f"mmlu_{subject}", manager, folder, settings) for subject in subjects]
    return [_local_task(benchmark.task, manager, folder, settings)]


def _local_task(task: str, manager: Any, folder: BenchmarkFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An official task with its data in files.

    lm-eval wants every split that its file names, at any number of shots; one that is not there is taken out of the
    file, unless it is needed.
    """
    known = data_of(task)
    if known is None:
        raise DataError(f"{task}: cannot be read from files, only {', '.join(DATA)} can. Leave out --benchmarks.")
    config = _official(task, manager) | dict(settings)
    named = {field: config.get(field) for field in SPLIT_FIELDS}
    name, subset = known
    files = folder.splits(name, sorted({split for split in named.values() if split}), subset)
    evaluated = named["test_split"] or named["validation_split"]
    if evaluated not in files:
        raise DataError(
            f"{task}: {folder.folder} has no {evaluated} split of it, on which it is evaluated. Add "
            f"{evaluated}.jsonl to its folder."
        )
    shots = config.get("num_fewshot") or 0
    own_examples = (config.get("fewshot_config") or {}).get("samples")
    source = named["fewshot_split"] or named["training_split"] or named["validation_split"]
    if shots and not own_examples and source not in files:
        raise DataError(
            f"{task}: {folder.folder} has no {source} split of it, from which its {shots} few-shot examples come. Add "
            f"{source}.jsonl to its folder, or give --shots=0, which is another protocol and is noted as one."
        )
    absent = {field: None for field, split in named.items() if split and split not in files}
    return {
        "task": task,
        **settings,
        **absent,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }


def _official(task: str, manager: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(manager.task_index[task].yaml_path, resolve_func=False, recursive=True))


def _simple_evaluate(
    lm: JaxalignLM,
    manager: Any,
    entries: Sequence[Mapping[str, Any]],
    suite: Suite,
    limit: int | None,
    chat: bool,
    system: str | None,
    out: str | Path | None,
    model_name: str,
    folder: BenchmarkFolder | None,
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    measure: Any = simple_evaluate
    tracker = EvaluationTracker(output_path=str(out)) if out else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third-party: lm-eval, datasets, metrics
        try:
            found = measure(
                model=lm,
                tasks=[{"group": f"jaxalign_{suite.name.partition(':')[0]}", "task": list(entries)}],
                task_manager=manager,
                limit=limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                system_instruction=system,
                evaluation_tracker=tracker,
                bootstrap_iters=100,
            )
        except (ConnectionError, FileNotFoundError) as error:
            hint = "" if folder else " Without a network, give a folder of files: --benchmarks=FOLDER."
            raise DataError(f"benchmarks: data cannot be had ({error}).{hint}") from error
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"benchmarks: {error.name} is not installed. IFEval needs pip install 'jaxalign[ifeval]'."
            ) from error
    if found is None:
        raise ConfigError("benchmarks: lm-eval gave no results on this process.")
    if folder:
        found["jaxalign_data_notes"] = dict(folder.notes)
    if tracker is not None and out is not None:
        _write(tracker, found, Path(out), model_name)
    return found


def _write(tracker: Any, found: Mapping[str, Any], out: Path, model_name: str) -> None:
    """lm-eval's own files, as its command line writes them."""
    tracker.general_config_tracker.model_name = model_name
    tracker.general_config_tracker.model_name_sanitized = Path(model_name).name.replace("/", "__")
    # The tracker empties fields of the samples as it writes them.
    samples = json.loads(json.dumps(found["samples"], default=str))
    results = {key: value for key, value in found.items() if key not in ("samples", "jaxalign_data_notes")}
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    if not list(out.rglob("results_*.json")):
        raise DataError(f"benchmarks: lm-eval could not write its results to {out}.")


def _choices(suite: Suite) -> list[str]:
    """Why settings are what they are, once for tasks that share a reason."""
    reasons: dict[str, list[str]] = {}
    for benchmark in suite.benchmarks:
        if benchmark.why:
            reasons.setdefault(benchmark.why, []).append(benchmark.task)
    return [f"{', '.join(tasks)}: {why}" for why, tasks in reasons.items()]
