"""Who is who in a study: keys of runs, models and measurements from what they depend on, and names of rows.

A key is the same on every machine and in every folder: files count by what they hold, not by where they lie, and a
model that the study makes by the key of the stage that makes it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxalign.config import RunConfig, to_dict
from jaxalign.config_checks import FREE
from jaxalign.data.sources import expand
from jaxalign.errors import DataError
from jaxalign.files import file_hash
from jaxalign.methods import get_method
from jaxalign.studies.hub import repository
from jaxalign.studies.study import Label

DIGITS = 16
"""Hexadecimal digits of a key: 64 bits, of which no study has enough stages to meet one twice."""
MODELS = ("model.path", "model.tokenizer", "reference.source")
FILES = ("model.config", "model.chat_template", "reference.chat_template")
DATA = ("data.train", "data.eval")
WORDS = {"reference.source": ("auto", "policy", "none", "prior", "columns"), "model.chat_template": ("chatml",)}
"""What these options may hold that is no path."""
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def digest(tree: Any) -> str:
    """The key of plain JSON values; the order of names does not matter."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def stage_identity(config: RunConfig, inputs: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What a training run depends on.

    What a run may change when it goes on (devices, logging, where the cache is) is left out.

    Args:
      config: the run, resolved.
      inputs: options that are the model of another stage, with its key.

    Returns:
      values by dotted path, with contents in place of paths and `repository` for names of the hub; and the problems of
      files that cannot be found.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    for path, value in _flat(to_dict(config)):
        if path.startswith(FREE):
            continue
        if path in inputs:
            found[path] = {"stage": inputs[path]}
            continue
        try:
            found[path] = _content(path, value)
        except DataError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
    return found, problems


def reference_identity(identity: Mapping[str, Any], config: RunConfig, *, seeded: bool) -> dict[str, Any]:
    """What the cached reference log-probabilities of a run depend on, but for how many examples are scored.

    Args:
      identity: the run's, from `stage_identity`.
      config: the run.
      seeded: whether the seed decides which examples are scored: not where all are.
    """
    method = get_method(config.method.name)
    kept = {
        path: value
        for path, value in identity.items()
        if path.startswith(("data.", "model.", "reference.")) and path not in ("data.size", "data.seed")
    }
    kept["layout"] = method.layout.name
    if seeded:
        kept["data.seed"] = config.data.seed
    if method.mismatched:  # other completions stand behind the prompts in every epoch
        train = config.train
        kept["mismatched"] = [config.data.seed, config.data.size, train.epochs, train.steps, train.batch_size]
    return kept


def model_content(model: str) -> Any:
    """What a model that is used as it is stands for: the files of a folder, or a repository of the hub.

    Raises:
      DataError: it is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
        return {"files": {file.name: file_hash(file) for file in files}}
    if folder.exists() or model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise DataError(f"got {model!r}, and there is no such folder; expected one, or a hub id like 'owner/name'.")
    return repository(model, "model")


def data_content(name: str) -> list[Any]:
    """The files of a path, folder or glob by their hashes, or a data set of the hub.

    Raises:
      DataError: there is no such file.
    """
    parts = expand(name)
    return [{"file": file_hash(part)} if isinstance(part, Path) else repository(part, "dataset") for part in parts]


def method_content(name: str) -> Any:
    """A method's name; of one in a module of the user's, also the module's source and that of its objective.

    What these import from elsewhere is not read.
    """
    module, colon, _ = name.partition(":")
    if not colon:
        return name
    objective = inspect.unwrap(get_method(name).objective)
    sources = {}
    for each in (module, getattr(objective, "__module__", None)):
        file = getattr(sys.modules.get(each or ""), "__file__", None)
        if each is not None and file is not None and not each.startswith("jaxalign."):
            sources[each] = file_hash(file)
    return {"method": name, "sources": sources}


def row_ids(labels: list[Mapping[str, Label]]) -> list[str]:
    """A short readable name for each row, fit for a file: ``sft-dpo-beta0.1-seed0``.

    Rows that would have the same name get part of a hash behind it. Rows with equal labels have equal names.
    """
    names = ["-".join(_label(name, value) for name, value in row.items())[:100] or "row" for row in labels]
    keys = [digest(dict(row)) for row in labels]
    meanings: dict[str, set[str]] = {}
    for name, key in zip(names, keys, strict=True):
        meanings.setdefault(name, set()).add(key)
    return [name if len(meanings[name]) == 1 else f"{name}-{key[:6]}" for name, key in zip(names, keys, strict=True)]


def _label(name: str, value: Label) -> str:
    text = value if isinstance(value, str) else f"{name}{value!r}"
    return re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("._") or "_"


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in tree.items():
        for name, value in values.items():
            yield f"{section}.{name}", value


def _content(path: str, value: Any) -> Any:
    """An option's value, with the content of the files that it names in place of their names."""
    if value is None or value in WORDS.get(path, ()):
        return value
    if path == "method.name":
        return method_content(value)
    if path in MODELS:
        return model_content(str(value))
    if path in FILES:
        return {"file": file_hash(_existing(Path(value).expanduser()))}
    if path in DATA:
        return [part for entry in value for part in data_content(entry)]
    return value


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"got {str(path)!r}, and there is no such file.")
    return path
