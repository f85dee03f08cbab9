"""What is wrong with a measure and can be told before anything is trained: files and extras that are not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxalign.data.chat import BUILT_IN
from jaxalign.data.sources import expand
from jaxalign.errors import DataError, JaxalignError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.studies.identity import DATA, FILES, MODELS, WORDS, model_content

BENCHMARKS = "pip install 'jaxalign[benchmarks]'"
IFEVAL = "pip install 'jaxalign[ifeval]'"


def checks(*parts: Iterable[str]) -> list[str]:
    """Problems of several checks, each once."""
    return list(dict.fromkeys(problem for part in parts for problem in part))


def of_data(name: str, data: str | Iterable[str] | None) -> Iterable[str]:
    """Data that cannot be found. A name such as ``owner/name`` is taken for one of the hub's."""
    for each in [data] if isinstance(data, str) else data or ():
        yield from _said(name, lambda each=each: expand(each))


def of_model(name: str, model: str | None) -> Iterable[str]:
    """A folder that is not there."""
    if model is not None:
        yield from _said(name, lambda: model_content(model))


def of_template(name: str, template: str | None) -> Iterable[str]:
    """A chat template that is neither a file, nor its text, nor a name."""
    if template is None or template in BUILT_IN or "{{" in template or "{%" in template:
        return
    if not Path(template).expanduser().is_file():
        known = ", ".join(BUILT_IN)
        yield f"{name}: got {template!r}, and there is no such file; expected a template file, its text, or {known}."


def of_configuration(tree: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Data, models and templates of a configuration's sections that cannot be found."""
    for section, options in tree.items():
        for name, value in options.items():
            path = f"{section}.{name}"
            if not value or value in WORDS.get(path, ()):
                continue
            if path in DATA:
                yield from of_data(path, value)
            elif path in FILES:
                yield from of_template(path, value)
            elif path in MODELS:
                yield from of_model(path, value)


def of_package(what: str, package: str, install: str) -> Iterable[str]:
    """A package of an extra that is not installed."""
    if find_spec(package) is None:
        yield f"{what} needs {package}, which is not installed; install it: {install}."


def of_judge(judge: JudgeSettings | None, **needless: Any) -> Iterable[str]:
    """A judge that cannot be asked, or what only a judge would need without one."""
    if judge is None:
        for name, value in needless.items():
            if value is not None:
                yield f"{name}: got {str(value)!r} without a judge, expected judge= beside it."
        return
    yield from of_package("a judge", "openai", BENCHMARKS)
    if judge.url is None and not os.environ.get(judge.api_key_env):
        yield f"judge: no key in the environment variable {judge.api_key_env}; set it, or name an endpoint of your own."


def of_files(name: str, read: Callable[[], Any]) -> Iterable[str]:
    """What is wrong with files that a function reads."""
    yield from _said(name, read)


def of_benchmarks(folder: str | None, tasks: Iterable[str]) -> Iterable[str]:
    """Extras that are not installed, and data sets that a folder of benchmarks lacks."""
    tasks = list(tasks)
    yield from of_package("a suite of benchmarks", "lm_eval", BENCHMARKS)
    if any("ifeval" in task for task in tasks):
        yield from of_package("IFEval", "langdetect", IFEVAL)
    if folder is None:
        return
    from jaxalign.evaluation.benchmark_files import BenchmarkFolder, data_of

    try:
        benchmarks = BenchmarkFolder(folder)
    except DataError as error:
        yield from error.problems
        return
    for name in dict.fromkeys(found[0] for task in tasks if (found := _data_set(task, data_of))):
        yield from _said("", lambda name=name: benchmarks.data_folder(name))


def _data_set(task: str, data_of: Callable[[str], tuple[str, str | None] | None]) -> tuple[str, str | None] | None:
    return ("mmlu", None) if task == "mmlu" else data_of(task)  # lm-eval's group of all subjects


def _said(name: str, look: Callable[[], Any]) -> Iterable[str]:
    try:
        look()
    except JaxalignError as error:
        for problem in error.problems:
            yield f"{name}: {problem}" if name else problem
    except OSError as error:
        yield f"{name}: {error}."
