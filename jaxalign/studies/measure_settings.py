"""Settings of measures: everything that a result depends on besides the model, with files by what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.sources import expand
from jaxalign.errors import DataError
from jaxalign.studies.identity import model_identity


class Settings(Mapping[str, Any]):
    """Settings of a measure as JSON values. Files count by the hash of what they hold, not by their names.

    They are read when the settings are: a study may generate its data after its measures are described.

    Args:
      values: JSON values; a text among them that is the name of a file stands for its content.
      models: by name, folders or hub ids of models; None = there is none.
    """

    def __init__(self, values: Mapping[str, Any], models: Mapping[str, str | None] | None = None):
        self._values, self._models = dict(values), dict(models or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self._models:
            return _with_contents(self._values[name])
        model = self._models[name]
        return None if model is None else model_identity(model)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._values, *self._models))

    def __len__(self) -> int:
        return len(self._values) + len(self._models)


def _with_contents(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_contents(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_with_contents(each) for each in value]
    return _content(value) if isinstance(value, str) and value else value


def _content(text: str) -> str | list[str]:
    """The hash of a file's content; those of a folder's or a glob's files; any other text as it is."""
    try:
        found = expand(text)
    except (DataError, OSError):  # no file, or too long for the name of one
        return text
    hashes = [_hash(each) if isinstance(each, Path) else each for each in found]
    return hashes[0] if len(hashes) == 1 else hashes


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}"
