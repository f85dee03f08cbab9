"""Settings of measures: everything that a result depends on besides the model, with files by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.files import file_hash
from jaxalign.studies.identity import DATA, FILES, MODELS, WORDS, data_content, digest, method_content, model_content


class Settings(Mapping[str, Any]):
    """Settings of a measure as JSON values. Files and models count by what they hold, not by their names.

    They are read when the settings are: a study may generate its data after its measures are described.

    Args:
      values: JSON values.
      files: by name, files, folders, globs, or names of data sets; None = there is none.
      models: by name, a folder or hub id; None = there is none.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        files: Mapping[str, str | Sequence[str] | None] | None = None,
        models: Mapping[str, str | None] | None = None,
    ):
        self._values, self._files, self._models = dict(values), dict(files or {}), dict(models or {})

    def __getitem__(self, name: str) -> Any:
        if name in self._files:
            found = self._files[name]
            return _content(found) if found is None or isinstance(found, str) else [_content(each) for each in found]
        if name in self._models:
            model = self._models[name]
            return None if model is None else model_content(model)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._values, *self._files, *self._models))

    def __len__(self) -> int:
        return len(self._values) + len(self._files) + len(self._models)


def configuration_settings(tree: Mapping[str, Mapping[str, Any]], **values: Any) -> Settings:
    """Sections of a configuration as settings, by dotted path, beside other values."""
    files: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for section, options in tree.items():
        for name, value in options.items():
            path = f"{section}.{name}"
            named = bool(value) and value not in WORDS.get(path, ())
            if path in (*DATA, *FILES) and named:
                files[path] = value
            elif path in MODELS and named:
                models[path] = value
            elif path == "method.name":
                values[path] = method_content(value)
            elif path != "reference.cache_dir":
                values[path] = value
    return Settings(values, files, models)


def _content(name: str | None) -> Any:
    """What a folder, a file, a glob's files or a data set's name stand for; any other text is itself."""
    if name is None:
        return None
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.is_file())
            return f"sha256:{digest([(each.relative_to(path).as_posix(), file_hash(each)) for each in inside])}"
        return data_content(name)
    except (DataError, OSError):  # no file, or a text that is too long for the name of one
        return name
