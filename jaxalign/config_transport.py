"""The door: from ``--config=configs/paired.py:dpo --config.train.steps=100`` to a `RunConfig`.

A configuration file is Python with ``get_config(arg) -> ml_collections.ConfigDict``, or the config.json of an earlier
run. Only here, in the command and in such files does a ConfigDict exist.
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.config import RunConfig, from_dict, schema, to_dict
from jaxalign.config_fields import from_text, literal
from jaxalign.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from jaxalign.studies.study import Study

Override = tuple[str, str]
"""A dotted path and the text it is set to: ``("train.steps", "100")``."""


def load(spec: str | None, overrides: Sequence[Override] = ()) -> RunConfig:
    """The configuration of a file with the command line's changes.

    Args:
      spec: ``path.py``, ``path.py:arg`` or ``path.json``; None starts from the defaults.
      overrides: paths and texts, applied in order.

    Raises:
      ConfigError: the file cannot be used, or, all at once, everything that is wrong with the configuration.
    """
    return from_dict(override(read(spec) if spec is not None else {}, overrides))


def read(spec: str) -> dict[str, Any]:
    """The dict form of a configuration file, unchecked."""
    path_text, arg = _split(spec)
    path = Path(path_text)
    if not path.is_file():
        raise ConfigError(_missing(path))
    if path.suffix == ".json":
        if arg is not None:
            raise ConfigError(f"--config: got the argument {arg!r} for {path}, expected none: only .py files take one.")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"--config: {path} is not JSON: {error}.") from None
    else:
        tree = _call(path, arg, "get_config")
    if isinstance(tree, RunConfig):
        return to_dict(tree)
    if hasattr(tree, "to_dict"):
        tree = tree.to_dict()
    if not isinstance(tree, Mapping):
        raise ConfigError(f"--config: {path} gave a {type(tree).__name__}, expected a ConfigDict with sections.")
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def override(tree: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """The dict form with values set from texts, each read as its field's type. Wrong names and values stay in, to be
    reported with all others.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for path, text in overrides:
        section, _, name = path.partition(".")
        if not name:
            result[section] = literal(text)
            continue
        values = result.setdefault(section, {})
        if not isinstance(values, dict):
            continue  # the section itself is already wrong, and reported
        field = schema().get(path)
        table, _, key = name.partition(".")
        if field is None and key and (parent := schema().get(f"{section}.{table}")) and parent.kind is dict:
            values[table] = {**(values.get(table) or {}), key: text}
        else:
            values[name] = literal(text) if field is None else from_text(field, text)
    return result


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override], list[str]]:
    """Splits a command line into its ordinary arguments, its ``--config.path=value`` changes, and problems."""
    rest: list[str] = []
    overrides: list[Override] = []
    problems: list[str] = []
    words = iter(range(len(argv)))
    for i in words:
        if not argv[i].startswith("--config."):
            rest.append(argv[i])
            continue
        path, equals, text = argv[i].removeprefix("--config.").partition("=")
        if not equals:
            if i + 1 >= len(argv) or argv[i + 1].startswith("--"):
                problems.append(f"--config.{path}: got no value, expected --config.{path}=VALUE.")
                continue
            text = argv[next(words)]
        overrides.append((path, text))
    return rest, overrides, problems


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """Reads the ``:arg`` string of a configuration file, as in ``configs/paired.py:ipo,model=mistral_7b``.

    The first word without ``=`` is the value of the first parameter; a later one switches a bool on. Values take the
    type of their default. A tuple of names as a default means: one of these, the first if absent.

    Returns:
      a ConfigDict with every parameter.

    Raises:
      ConfigError: with all problems: unknown parameters, values of the wrong type or outside the names.
    """
    import ml_collections

    values = {name: default[0] if isinstance(default, tuple) else default for name, default in defaults.items()}
    problems: list[str] = []
    for i, word in enumerate(part.strip() for part in (arg or "").split(",") if part.strip()):
        name, equals, text = word.partition("=")
        if not equals and name not in defaults and i == 0:
            name, equals, text = next(iter(defaults), name), "=", word
        if name not in defaults:
            known = ", ".join(defaults)
            problems.append(f"unknown parameter {name!r}, expected {known}.{did_you_mean(name, defaults)}")
            continue
        default = defaults[name]
        if isinstance(default, tuple):
            if text not in default:
                hint = _elsewhere(text) if name == "method" else ""
                hint = hint or did_you_mean(text, default)
                problems.append(f"{name}: got {text!r}, expected one of {', '.join(default)}.{hint}")
            values[name] = text
            continue
        value = literal(text) if equals else True
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(default, str):
            value = text
        if default is not None and type(value) is not type(default):
            problems.append(f"{name}: got {text!r}, expected a value like {default!r}.")
        values[name] = value
    if problems:
        raise ConfigError([f"--config argument {arg!r}: {problem}" for problem in problems])
    return ml_collections.ConfigDict(values)


def _elsewhere(name: str) -> str:
    """For a method that another of the shipped configurations takes: which, and what data it reads."""
    from jaxalign.methods import METHODS

    if name not in METHODS:
        return ""
    method = METHODS[name]
    reads, file = {
        "SINGLE": ("single answers", f"sft.py:method={name}"),
        "PAIRED": ("pairs", f"paired.py:{name}"),
        "UNPAIRED": ("labelled answers", f"unpaired.py:{name}"),
        "RANKED": ("rankings", f"ranked.py:{name}"),
    }[method.layout.name]
    if "step_logits" in method.inputs:
        reads, file = "labelled steps", "steps.py"
    return f" {name} reads {reads}: configs/{file}."


def _split(spec: str) -> tuple[str, str | None]:
    for suffix in (".py:", ".json:"):
        head, found, arg = spec.partition(suffix)
        if found:
            return head + suffix[:-1], arg
    return spec, None


def _missing(path: Path) -> str:
    if path.is_dir():
        known = sorted(file.name for file in (*path.glob("*.py"), *path.glob("*.json")))
        return f"--config: {path} is a folder, expected a file, such as one of {', '.join(known) or 'a .py or .json'}."
    folder = path.parent
    if not folder.is_dir():
        return f"--config: no file {str(path)!r}, and no folder {str(folder)!r}."
    known = sorted(file.name for file in (*folder.glob("*.py"), *folder.glob("*.json")))
    names = f" There are {', '.join(known)}." if known else ""
    return f"--config: no file {str(path)!r}.{names}{did_you_mean(path.name, known)}"


def load_study(spec: str) -> Study:
    """The study of a Python file with ``get_study(arg) -> Study``.

    Args:
      spec: ``path.py`` or ``path.py:arg``; the argument has the grammar of `parse_arg`.

    Raises:
      ConfigError: the file cannot be used; with its name and line where it goes wrong.
    """
    from jaxalign.studies.study import Study

    path_text, arg = _split(spec)
    path = Path(path_text)
    if not path.is_file():
        raise ConfigError(_missing(path))
    if path.suffix != ".py":
        raise ConfigError(f"--config: got {path}, expected a Python file with get_study(arg).")
    study = _call(path, arg, "get_study")
    if not isinstance(study, Study):
        raise ConfigError(f"--config: get_study of {path} gave a {type(study).__name__}, expected a Study.")
    return study


def _call(path: Path, arg: str | None, name: str) -> Any:
    """Runs a Python file and calls the function of this name in it with the argument of the command line."""
    try:
        with _importable(path.parent):
            module = types.ModuleType(f"jaxalign_config_{path.stem}")
            module.__file__ = str(path)
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
            function = getattr(module, name, None)
            if not callable(function):
                raise ConfigError(f"--config: {path} has no function {name}(arg).{_other_function(name, vars(module))}")
            if not inspect.signature(function).parameters:
                if arg is not None:
                    raise ConfigError(f"--config: got the argument {arg!r}, but {name} of {path} takes none.")
                return function()
            return function(arg)
    except ConfigError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
        where = f"{path} line {line}" if line else str(path)
        raise ConfigError(f"--config: {where}: {type(error).__name__}: {error}") from error


def _other_function(name: str, found: Mapping[str, Any]) -> str:
    """For a file that has the other of the two functions, which verbs take it."""
    if name == "get_config" and callable(found.get("get_study")):
        return " It has get_study(arg): jaxalign study takes it."
    if name == "get_study" and callable(found.get("get_config")):
        return " It has get_config(arg): jaxalign train takes it."
    return did_you_mean(name, found)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets a configuration file import the files beside it (``import common``), and forgets them afterwards.

    Not one of this package: its neighbours have names of the standard library's, and are imported by their full name.
    """
    if Path(__file__).resolve().parent in (folder.resolve(), *folder.resolve().parents):
        yield
        return
    before = set(sys.modules)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().parent == folder.resolve():
                del sys.modules[name]
