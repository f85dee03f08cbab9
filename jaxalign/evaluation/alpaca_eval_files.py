"""AlpacaEval's files: the evaluation set with the baseline's outputs, a model's outputs, annotations, judge prompts.

None of them is part of this package: they are read from where the user has them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.files import write_text

SHOWN_PROBLEMS = 20
PUBLISHED_PROMPT = "784227e6"
"""How the SHA-256 of alpaca_eval's ``alpaca_eval_clf.txt`` begins."""


@dataclass(frozen=True)
class EvaluationSet:
    """Instructions with the outputs that a model's are compared with.

    Attributes:
      instructions: in the file's order, each once.
      datasets: where each comes from.
      outputs: the baseline's.
      baseline: its name.
      sha256: of the file.
    """

    instructions: tuple[str, ...]
    datasets: tuple[str, ...]
    outputs: tuple[str, ...]
    baseline: str
    sha256: str

    def first(self, limit: int | None) -> EvaluationSet:
        """With only so many instructions, the first ones; None = all."""
        if limit is None or limit >= len(self.instructions):
            return self
        return EvaluationSet(
            self.instructions[:limit], self.datasets[:limit], self.outputs[:limit], self.baseline, self.sha256
        )


FILES = {
    "data": ("alpaca_eval_gpt4_baseline.json", "alpaca_eval.json"),
    "judge_prompt": ("alpaca_eval_clf.txt",),
    "weights": ("df_gamed.csv",),
}
"""How alpaca_eval names the evaluation set with the baseline's outputs, the judge's prompt, and the weights."""


def find_files(path: str | Path) -> dict[str, Path]:
    """The files of a folder by their names; a file is the evaluation set.

    Raises:
      DataError: there is no evaluation set.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return {"data": path}
    found = {
        kind: next((path / name for name in names if (path / name).is_file()), None) for kind, names in FILES.items()
    }
    if found["data"] is None:
        raise DataError(f"{path}: no evaluation set, expected {' or '.join(FILES['data'])}; or give the file itself.")
    return {kind: file for kind, file in found.items() if file is not None}


def read_evaluation_set(path: str | Path) -> EvaluationSet:
    """Reads a JSON list of ``{"instruction", "output", "generator", "dataset"}``, the baseline's outputs.

    Raises:
      DataError: with all problems.
    """
    rows, sha256 = _read_rows(path, ("instruction", "output"))
    names = {str(row.get("generator", "baseline")) for row in rows}
    problems = [f"{path}: outputs of {sorted(names)}, expected those of one baseline."] if len(names) > 1 else []
    seen: set[str] = set()
    for row in rows:
        if row["instruction"] in seen:
            problems.append(f"{path}: the instruction {_short(row['instruction'])} is there twice.")
        seen.add(row["instruction"])
    if problems:
        raise DataError(_some(problems))
    return EvaluationSet(
        instructions=tuple(row["instruction"] for row in rows),
        datasets=tuple(str(row.get("dataset", "")) for row in rows),
        outputs=tuple(row["output"] for row in rows),
        baseline=names.pop(),
        sha256=sha256,
    )


def read_outputs(path: str | Path, evaluation: EvaluationSet) -> tuple[str, list[str]]:
    """A model's name and its outputs in the order of the evaluation set.

    Raises:
      DataError: instructions that do not match exactly, missing and unknown ones; all of them.
    """
    rows, _ = _read_rows(path, ("instruction", "output"))
    names = {str(row.get("generator", "model")) for row in rows}
    problems = [f"{path}: outputs of {sorted(names)}, expected those of one model."] if len(names) > 1 else []
    found = {row["instruction"]: row["output"] for row in rows}
    problems += mismatches(path, list(found), evaluation)
    if problems:
        raise DataError(problems)
    return names.pop(), [found[instruction] for instruction in evaluation.instructions]


def mismatches(path: str | Path, instructions: Sequence[str], evaluation: EvaluationSet) -> list[str]:
    """Every instruction of the evaluation set that has no equal in the file, and the other way round."""
    have, want = set(instructions), set(evaluation.instructions)
    by_words = {" ".join(text.split()).casefold(): text for text in have - want}
    problems = []
    for number, instruction in enumerate(evaluation.instructions):
        if instruction in have:
            continue
        near = by_words.pop(" ".join(instruction.split()).casefold(), None)
        hint = f"; {_short(near)} differs from it in spaces or case" if near is not None else ""
        problems.append(f"{path}: no output for instruction {number}, {_short(instruction)}{hint}.")
    problems += [
        f"{path}: the instruction {_short(text)} is not in the evaluation set."
        for text in instructions
        if text in by_words.values()
    ]
    return problems


def output_rows(evaluation: EvaluationSet, model: str, outputs: Sequence[str]) -> list[dict[str, Any]]:
    """A model's outputs as AlpacaEval reads them."""
    return [
        {"dataset": dataset, "instruction": instruction, "output": output, "generator": model}
        for dataset, instruction, output in zip(evaluation.datasets, evaluation.instructions, outputs, strict=True)
    ]


def read_annotations(path: str | Path, evaluation: EvaluationSet) -> list[dict[str, Any]]:
    """Annotations in the order of the evaluation set.

    Raises:
      DataError: the instructions do not match, or something is missing; all problems.
    """
    rows, _ = _read_rows(path, ("instruction", "output_1", "output_2"))
    problems = mismatches(path, [row["instruction"] for row in rows], evaluation)
    found = {row["instruction"]: row for row in rows}
    for number, instruction in enumerate(evaluation.instructions):
        row = found.get(instruction)
        if row is not None and row["output_1"] != evaluation.outputs[number]:
            problems.append(
                f"{path}: output_1 of instruction {number}, {_short(instruction)}, is not the baseline's output."
            )
    if problems:
        raise DataError(problems)
    return [found[instruction] for instruction in evaluation.instructions]


def write_json(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON list, whole or not at all."""
    write_text(path, json.dumps(list(rows), indent=2) + "\n")


@dataclass(frozen=True)
class JudgePrompt:
    """What AlpacaEval asks its judge, in ChatML with ``{instruction}``, ``{output_1}`` and ``{output_2}``.

    Attributes:
      messages: role and content with these fields.
      sha256: of the file.
    """

    messages: tuple[tuple[str, str], ...]
    sha256: str

    def fill(self, instruction: str, output_1: str, output_2: str) -> list[dict[str, str]]:
        """The messages for one comparison. A field's name inside an answer stays as it is."""
        fields = {"{instruction}": instruction, "{output_1}": output_1, "{output_2}": output_2}
        return [
            {"role": role, "content": _FIELD.sub(lambda match: fields[match[0]], content).strip()}
            for role, content in self.messages
        ]


_FIELD = re.compile(r"\{instruction\}|\{output_1\}|\{output_2\}")


def read_judge_prompt(path: str | Path) -> JudgePrompt:
    """Reads a prompt such as alpaca_eval's ``evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt``.

    Raises:
      DataError: it cannot be read, is no ChatML, or lacks a field.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    messages = []
    for part in text.split("<|im_start|>")[1:]:
        role, _, rest = part.partition("\n")
        messages.append((role.strip(), rest.split("<|im_end|>", 1)[0].strip()))
    problems = []
    if not (messages and text.startswith("<|im_start|>") and text.endswith("<|im_end|>")):
        problems.append(f"{path}: expected ChatML, from <|im_start|> to <|im_end|>.")
    fields = {field for _, content_ in messages for field in _FIELD.findall(content_)}
    for field in ("{instruction}", "{output_1}", "{output_2}"):
        if field not in fields:
            problems.append(f"{path}: no {field}.")
    if problems:
        raise DataError(problems)
    return JudgePrompt(tuple(messages), hashlib.sha256(content).hexdigest())


def _read_rows(path: str | Path, names: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Objects whose fields of these names are texts, and the file's SHA-256."""
    try:
        content = Path(path).read_bytes()
        rows = json.loads(content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected a list of objects.") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of objects that is not empty.")
    problems = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(f"{path}: row {number} is no object.")
            continue
        problems += [
            f"{path}: row {number} has no text {name!r}; expected {', '.join(names)}."
            for name in names
            if not isinstance(row.get(name), str)
        ]
    if problems:
        raise DataError(_some(problems))
    return rows, hashlib.sha256(content).hexdigest()


def _some(problems: list[str]) -> list[str]:
    more = len(problems) - SHOWN_PROBLEMS
    return problems if more <= 0 else [*problems[:SHOWN_PROBLEMS], f"and {more} more."]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
