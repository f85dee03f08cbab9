"""Which commits of the hub's models and data sets a study's keys stand for.

A repository is known by its name until it has been downloaded, and its commit is known afterwards. Both must give one
key, or the first download would make a study's stages strangers to it. So in keys a name stands for the first commit
that was seen in the study's folder (``hub.json``), and any later one is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxalign.studies.folders import Folders, locked, read_json, write_json

Kind = Literal["model", "dataset"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


def repository(name: str, kind: Kind) -> dict[str, Any]:
    """A hub repository in an identity: its name, and its commit where the cache has one. `Commits` makes it a key."""
    return {"hub": name, "kind": kind, "commit": cached_commit(name, kind)}


def cached_commit(name: str, kind: Kind) -> str | None:
    """The commit of a repository that was downloaded last; None = not downloaded, or none can be told."""
    from huggingface_hub import constants

    owner_and_name, _, revision = name.partition("@")
    if _COMMIT.fullmatch(revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{owner_and_name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        commit = _prepared_commit(owner_and_name, Path(constants.HF_HOME)) if kind == "dataset" else None
    return commit if commit and _COMMIT.fullmatch(commit) else None


def _prepared_commit(name: str, home: Path) -> str | None:
    """Data sets are kept as tables too: NAME/CONFIGURATION/VERSION/COMMIT."""
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.replace("/", "___")
    found = [path for path in folder.glob("*/*/*") if path.is_dir() and _COMMIT.fullmatch(path.name)]
    return max(found, key=lambda path: path.stat().st_mtime_ns).name if found else None


class Commits:
    """Turns repositories in identities into what stands in keys.

    Args:
      first: by kind and name, the commit that was seen first in the study's folder.

    Attributes:
      found: by kind and name, the commits now of all repositories that were asked for; None = unknown.
    """

    def __init__(self, first: Mapping[str, str]):
        self._first = dict(first)
        self.found: dict[str, str | None] = {}

    @classmethod
    def of(cls, folders: Folders) -> Commits:
        """With what was recorded in a study's folder."""
        return cls(read_json(_file(folders)) or {})

    def settle(self, tree: Any) -> Any:
        """JSON values with what stands in keys in place of each `repository`."""
        if isinstance(tree, Mapping):
            if tree.keys() == {"hub", "kind", "commit"}:
                return self._key(tree["hub"], tree["kind"], tree["commit"])
            return {name: self.settle(value) for name, value in tree.items()}
        return [self.settle(value) for value in tree] if isinstance(tree, list | tuple) else tree

    def _key(self, name: str, kind: Kind, commit: str | None) -> str:
        place = f"{kind} {name}"
        self.found[place] = commit
        same = commit is None or self._first.get(place, commit) == commit
        return name if same else f"{name}@{commit}"


def note_commits(folders: Folders, places: Iterable[str]) -> None:
    """Records the commits that can be told now of repositories that have none on record."""
    known = read_json(_file(folders)) or {}
    found = commits_now(place for place in places if place not in known)
    if any(found.values()):
        with locked(folders.lock("hub")):
            known = read_json(_file(folders)) or {}
            new = {place: commit for place, commit in found.items() if commit is not None and place not in known}
            write_json(_file(folders), known | new)


def commits_now(places: Iterable[str]) -> dict[str, str | None]:
    """The commits that the cache has of these repositories, by kind and name as in `Commits`."""
    return {place: _commit_of(place) for place in places}


def _commit_of(place: str) -> str | None:
    kind, _, name = place.partition(" ")
    return cached_commit(name, "dataset" if kind == "dataset" else "model")


def _file(folders: Folders) -> Path:
    return folders.root / "hub.json"
