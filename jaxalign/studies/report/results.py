"""The rows of a study as a report reads them: settings, metrics, protocols, and what is missing."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxalign.studies.report.style import RAMP
from jaxalign.studies.study import Label

Row = Mapping[str, Any]
DEFAULT = "default"
"""The value of a label in rows that lack it, where rows that are otherwise alike have it."""
SEED = "seed"
"""The label of repetitions: rows that differ in it alone are one setting."""


def metric_of(row: Row, name: str) -> Mapping[str, Any] | None:
    """A row's metric, ``"MEASURE/METRIC"``; None where it was not measured or is not finite."""
    measure, _, metric = name.partition("/")
    found = row.get("results", {}).get(measure, {}).get("metrics", {}).get(metric)
    return found if found is not None and found.get("value") is not None else None


def degenerate(row: Row) -> str | None:
    """Why the row's model writes no language any more, as any of its measures found; None if it is fine."""
    reasons = (outcome.get("degenerate") for outcome in row.get("results", {}).values())
    return next((reason for reason in reasons if reason), None)


def is_score(metric: Mapping[str, Any]) -> bool:
    """Whether the number says how good the model's own text is; of a degenerate one it then says nothing."""
    return metric.get("higher_is_better") is not None and not metric.get("of_given_text")


def canonical(tree: Any) -> str:
    """JSON by which two values are equal or not."""
    return json.dumps(tree, sort_keys=True, ensure_ascii=False)


def protocol_of(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """How a measurement was made. The seed of what is drawn at random is a repetition, not another way."""

    def without_seed(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {key: without_seed(value) for key, value in tree.items() if key != SEED}
        return [without_seed(value) for value in tree] if isinstance(tree, list) else tree

    return without_seed(outcome.get("protocol", {}))


@dataclass(frozen=True)
class Group:
    """A setting: the rows that differ in their seed alone and whose headline was measured in the same way.

    Attributes:
      labels: all but the seed.
      rows: its rows that were done.
      protocol: index of the headline's protocol, 0 for the most frequent; None where the headline was not measured.
    """

    labels: Mapping[str, Label]
    rows: tuple[Row, ...]
    protocol: int | None

    @property
    def sound(self) -> tuple[Row, ...]:
        """Its rows that are not degenerate."""
        return tuple(row for row in self.rows if not degenerate(row))


@dataclass(frozen=True)
class Results:
    """All rows of a study, in its order.

    Attributes:
      rows: with their labels, results and making.
      notes: what a reader must know of where they come from.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def study(self) -> Mapping[str, Any]:
        """What the rows say of their study."""
        return self.rows[0]["study"]

    @property
    def headline(self) -> str:
        """The metric that answers the question."""
        return self.study.get("headline", "")

    @property
    def compare(self) -> str:
        """The label whose values are compared."""
        return self.study.get("compare", "method")

    @cached_property
    def done(self) -> tuple[Row, ...]:
        """The rows that have results."""
        return tuple(row for row in self.rows if row["status"] == "done")

    @cached_property
    def failed(self) -> tuple[Row, ...]:
        """The rows that have none."""
        return tuple(row for row in self.rows if row["status"] != "done")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels but the seed, the compared one first."""
        names = dict.fromkeys(name for row in self.rows for name in row["labels"] if name != SEED)
        return tuple(sorted(names, key=lambda name: name != self.compare))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The labels that not all rows have alike; all where none is left."""
        found = [n for n in self.labels if len({canonical(row["labels"].get(n)) for row in self.rows}) > 1]
        return tuple(found) or self.labels

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """Labels, no numbers, that some rows of a compared value have and others lack: lacking it is then a value too.

        A label that no row of a compared value has, such as the beta of a model that is not aligned, is none of them.
        """
        having: dict[tuple[Label | None, str], set[bool]] = {}
        for row in self.rows:
            for name in self.labels:
                having.setdefault((row["labels"].get(self.compare), name), set()).add(name in row["labels"])
        names = {name for (_, name), found in having.items() if len(found) == 2 and name != self.compare}
        texts = {n for n in names for row in self.rows if n in row["labels"] and not is_number(row["labels"][n])}
        return tuple(name for name in self.labels if name in texts)

    def labels_of(self, row: Row) -> dict[str, Label]:
        """A row's labels without its seed, in the order of `labels`; optional ones that it lacks are `DEFAULT`."""
        known = {**dict.fromkeys(self.optional, DEFAULT), **row["labels"]}
        return {name: known[name] for name in self.labels if name in known}

    def values(self, label: str) -> list[Label]:
        """The values that a label takes: numbers ascending, texts in the order of the rows."""
        found = list(dict.fromkeys(own[label] for own in map(self.labels_of, self.rows) if label in own))
        return sorted(found) if all(is_number(value) for value in found) else found

    def tied(self, label: str) -> tuple[str, ...]:
        """Labels that belong to the values of another one: each of its values has one value of them, or none.

        Where every method has a beta of its own, methods are compared with their betas; "everything else equal" then
        leaves beta out.
        """
        kinds: dict[Label | None, dict[str, set[Label | None]]] = {}
        for labels in map(self.labels_of, self.rows):
            own = kinds.setdefault(labels.get(label), {})
            for name in self.labels:
                own.setdefault(name, set()).add(labels.get(name))
        others = [name for name in self.labels if name != label]
        return tuple(name for name in others if all(len(own[name]) == 1 for own in kinds.values()))

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The labels beside the compared one that make settings different, whatever its value."""
        return tuple(name for name in self.labels if name != self.compare and name not in self.tied(self.compare))

    def varies(self, groups: Sequence[Group], without: Sequence[str] = ()) -> list[str]:
        """The free labels of which some groups have several values."""
        names = [name for name in self.free if name not in without]
        return [name for name in names if len({g.labels[name] for g in groups if name in g.labels}) > 1]

    def is_numeric(self, label: str) -> bool:
        """Whether a label takes two numbers or more, and nothing else."""
        values = self.values(label)
        return len(values) > 1 and all(is_number(value) for value in values)

    def numeric(self) -> list[str]:
        """The free labels that are numbers."""
        return [name for name in self.free if self.is_numeric(name)]

    @cached_property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        """``"MEASURE/METRIC"`` -> a metric of this name (for its unit and direction), the headline first."""
        found: dict[str, Mapping[str, Any]] = {}
        for row in self.done:
            for measure, outcome in row.get("results", {}).items():
                for name, metric in outcome.get("metrics", {}).items():
                    found.setdefault(f"{measure}/{name}", metric)
        return dict(sorted(found.items(), key=lambda item: item[0] != self.headline))

    @cached_property
    def protocols(self) -> dict[str, list[str]]:
        """Measure -> its different protocols as canonical JSON, the most frequent first."""
        counts: dict[str, Counter[str]] = {}
        for row in self.done:
            for measure, outcome in row.get("results", {}).items():
                counts.setdefault(measure, Counter())[canonical(protocol_of(outcome))] += 1
        return {measure: [text for text, _ in count.most_common()] for measure, count in counts.items()}

    def protocol(self, row: Row, measure: str) -> int | None:
        """Which of the measure's protocols the row has; None where it was not measured."""
        outcome = row.get("results", {}).get(measure)
        return None if outcome is None else self.protocols[measure].index(canonical(protocol_of(outcome)))

    def mismatches(self) -> Iterator[tuple[str, list[str]]]:
        """Measures that were not made in the same way of all rows."""
        return ((measure, texts) for measure, texts in self.protocols.items() if len(texts) > 1)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The settings, in the order of the rows; those of the headline's most frequent protocol first."""
        measure = self.headline.partition("/")[0]
        found: dict[tuple[str, int | None], list[Row]] = {}
        for row in self.done:
            key = canonical(self.labels_of(row)), self.protocol(row, measure)
            found.setdefault(key, []).append(row)
        groups = [Group(self.labels_of(rows[0]), tuple(rows), protocol) for (_, protocol), rows in found.items()]
        return tuple(sorted(groups, key=lambda group: (group.protocol is None, group.protocol or 0)))

    @cached_property
    def baselines(self) -> tuple[Label, ...]:
        """Compared values that lack a number among the labels which others have, such as the model before alignment."""
        own: dict[Label, set[str]] = {}
        for row in self.rows:
            if self.compare in row["labels"]:
                numbers = {name for name, value in row["labels"].items() if name != SEED and is_number(value)}
                own.setdefault(row["labels"][self.compare], set()).update(numbers)
        every = set().union(*own.values())
        lacking = tuple(value for value, names in own.items() if every - names)
        return lacking if len(lacking) < len(own) else ()

    def style(self, value: Label | None) -> str:
        """The CSS class of a compared value: the same colour and mark in every picture, grey for a baseline.

        Numbers have a scale of colours: in pictures they are an axis, and the other labels are the lines.
        """
        coloured = [v for v in self.values(self.compare) if v not in self.baselines]
        if value in coloured and self.is_numeric(self.compare):
            return f"r{round(coloured.index(value) * (RAMP - 1) / max(len(coloured) - 1, 1))}"
        return f"k{coloured.index(value) % 8}" if value in coloured else "kn"

    @cached_property
    def memory(self) -> dict[Any, Any]:
        """What was computed of the rows, by what it is: a page asks for the same means in many places."""
        return {}

    @cached_property
    def joint(self) -> tuple[str, ...]:
        """Free labels, no numbers, that cannot be compared one by one.

        Two values of one of them have no value of the other in common: an objective without a reference beside one with
        several.
        """
        names = [name for name in self.free if not self.is_numeric(name)]
        return next((pair for pair in itertools.combinations(names, 2) if self._disjoint(*pair)), ())

    def _disjoint(self, one: str, other: str) -> bool:
        for a, b in ((one, other), (other, one)):
            partners: dict[Label, set[Label]] = {}
            for labels in map(self.labels_of, self.rows):
                if a in labels and b in labels:
                    partners.setdefault(labels[a], set()).add(labels[b])
            some = any(len(found) > 1 for found in partners.values())
            if some and any(x.isdisjoint(y) for x, y in itertools.combinations(partners.values(), 2)):
                return True
        return False

    @staticmethod
    def name_of(names: Sequence[str]) -> str:
        """The name of a joint label."""
        return ", ".join(names)

    @cached_property
    def joined(self) -> Results:
        """The same rows with the joint labels as one."""
        if not self.joint:
            return self
        rows = []
        for row in self.rows:
            labels = {name: value for name, value in row["labels"].items() if name not in self.joint}
            found = [str(row["labels"][name]) for name in self.joint if name in row["labels"]]
            if found:
                labels[self.name_of(self.joint)] = ", ".join(found)
            rows.append({**row, "labels": labels})
        return Results(rows, self.notes)

    @property
    def compared_labels(self) -> list[tuple[Results, str]]:
        """The labels whose values are compared: the study's, and those that are no numbers and not tied to it.

        Each with the rows in which they are. Joint labels are compared as one.
        """
        found: list[tuple[Results, str]] = [(self, self.compare)]
        if self.joint:
            found.append((self.joined, self.name_of(self.joint)))
        found += [(self, name) for name in self.free if name not in (*self.numeric(), *self.joint)]
        return [(own, name) for own, name in found if 1 <= len(own.values(name)) <= 12]

    def telling(self, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Labels without those that are the same in all settings that have such labels, but for the compared one."""
        kin = [group.labels for group in self.groups if group.labels.keys() == labels.keys()]
        found = {n: v for n, v in labels.items() if n == self.compare or len({other[n] for other in kin}) > 1}
        return found or dict(labels)

    @property
    def higher_is_better(self) -> bool | None:
        """Of the headline."""
        return self.metrics.get(self.headline, {}).get("higher_is_better")


def is_number(value: Any) -> bool:
    """An int or float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
