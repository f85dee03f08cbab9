"""A crowd that answers the language's prompts badly, a judge that tells better from worse, and the files of both.

The crowd is what makes alignment worth while. On the hard tasks most of its people make the task's typical mistake,
some are chatty, some are careless. A model that imitates the crowd learns its most common answer, which is then often
wrong. The judge sees two answers of the crowd and prefers the right one, then the one that says nothing else; it errs
at a known rate. What the judge prefers and the crowd seldom does is what preference optimization has to find.

Held-out prompts are about lists whose words no training prompt of any task lists, in whatever order: a list's split is
a hash of its set of words. (Three of them may stand in a training list of four.)
"""

import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.data.synthetic.language import LONGEST, SHORTEST, TASK_NAMES, WORDS, Question, ask, chatty, check
from jaxalign.data.synthetic.tokenizer import train_tokenizer

HARD = ("remove", "reverse", "swap-ends", "sort", "earliest")
_HELD_OUT_OF = 10  # one set of words in ten is held out


@dataclass(frozen=True, kw_only=True)
class World:
    """How large the data is and how bad the crowd is. The same values give the same bytes.

    Attributes:
      seed: of everything random.
      demonstrations: prompts that the crowd answered, for SFT.
      documents: lines of plain text, each a question that the crowd answered, for pretraining.
      pairs: prompts with two answers of the crowd, judged, for preference optimization.
      eval_pairs: the same on held-out lists.
      questions: held-out prompts to measure exact match on.
      slip_rate: share of the crowd that makes the typical mistake on an easy task.
      hard_slip_rate: the same on a hard task (`HARD`); above one half, the mistake is the most common answer.
      chatty_rate: share of answers in a chatty style.
      careless_rate: share of answers in which two neighbouring words change places or one is lost.
      judge_error: share of pairs that the judge gets the wrong way round.
    """

    seed: int = 0
    demonstrations: int = 40_000
    documents: int = 0
    pairs: int = 12_000
    eval_pairs: int = 256
    questions: int = 1024
    slip_rate: float = 0.15
    hard_slip_rate: float = 0.6
    chatty_rate: float = 0.2
    careless_rate: float = 0.02
    judge_error: float = 0.05


@dataclass(frozen=True)
class WorldFiles:
    """Where a world was written.

    Attributes:
      demonstrations: ``{"messages": [user, assistant], "task"}`` rows for SFT.
      documents: ``{"prompt", "completion"}`` rows for pretraining, plain text: no chat format, no roles.
      pairs: ``{"prompt", "chosen", "rejected", "task"}`` rows, conversational.
      eval_pairs: the same, held out.
      questions: ``{"prompt", "task", "answer"}`` rows, held out; prompt and answer are plain text.
      tokenizer: folder of the tokenizer, with its chat template.
      summary: what was measured of the data: sizes, and how good the crowd and the judge are.
    """

    demonstrations: Path
    documents: Path
    pairs: Path
    eval_pairs: Path
    questions: Path
    tokenizer: Path
    summary: Mapping[str, Any] = field(default_factory=dict)


class PairRow(NamedTuple):
    """A judged pair: the question, the preferred answer and the other."""

    question: Question
    chosen: str
    rejected: str


def held_out(items: Iterable[str]) -> bool:
    """Whether prompts about these words are kept for evaluation, whatever their order, the task and the seed."""
    return zlib.crc32(" ".join(sorted(items)).encode()) % _HELD_OUT_OF == 0


def questions(world: World, *, evaluation: bool) -> Iterator[Question]:
    """An endless stream of different questions, of the training lists or of the held-out ones."""
    rng = random.Random(f"questions {world.seed} {evaluation}")
    seen: set[str] = set()
    while True:
        items: list[str] = rng.sample(WORDS, rng.randint(SHORTEST, LONGEST))
        if held_out(items) != evaluation:
            continue
        question = ask(rng, items)
        if question.prompt not in seen:
            seen.add(question.prompt)
            yield question


def crowd_answer(world: World, question: Question, rng: random.Random) -> str:
    """What one person of the crowd answers."""
    slips = rng.random() < (world.hard_slip_rate if question.task in HARD else world.slip_rate)
    words = (question.slip if slips else question.answer).split()
    if rng.random() < world.careless_rate and len(words) > 1:
        at = rng.randrange(len(words) - 1)
        if rng.random() < 0.5:
            words[at], words[at + 1] = words[at + 1], words[at]
        else:
            del words[at]
    text = " ".join(words)
    return chatty(rng, text) if rng.random() < world.chatty_rate else text


def judged_pair(world: World, question: Question, rng: random.Random) -> PairRow:
    """Two answers of the crowd, one better than the other, as the judge ordered them."""
    while True:
        texts = [crowd_answer(world, question, rng) for _ in range(2)]
        worth = [sum(check(question.prompt, text)) for text in texts]
        if worth[0] == worth[1]:
            continue
        better = worth.index(max(worth))
        if rng.random() < world.judge_error:
            better = 1 - better
        return PairRow(question, texts[better], texts[1 - better])


def document(world: World, question: Question, rng: random.Random) -> dict[str, str]:
    """A line of plain text in two parts: ``"Sort: fox cat hen ="`` and ``"cat fox hen"``."""
    return {"prompt": f"{question.prompt} =", "completion": crowd_answer(world, question, rng)}


def write_world(folder: str | Path, world: World) -> WorldFiles:
    """Writes a world's data files and its tokenizer. The tokenizer is trained on the training files alone.

    Args:
      folder: created if it is not there.
      world: what to write.

    Returns:
      The paths, and what was counted while writing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"crowd {world.seed}")
    stream = questions(world, evaluation=False)
    demonstrations = [(q, crowd_answer(world, q, rng)) for q in islice(stream, world.demonstrations)]
    pairs = [judged_pair(world, q, rng) for q in islice(stream, world.pairs)]
    documents_rng = random.Random(f"documents {world.seed}")
    documents = [document(world, q, documents_rng) for q in islice(stream, world.documents)]
    stream = questions(world, evaluation=True)
    asked = list(islice(stream, world.questions))
    eval_pairs = [judged_pair(world, q, rng) for q in islice(stream, world.eval_pairs)]

    texts = [text for q, response in demonstrations for text in (q.prompt, response)]
    texts += [text for pair in pairs for text in (pair.question.prompt, pair.chosen, pair.rejected)]
    texts += [text for row in documents for text in row.values()]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(folder / "tokenizer")

    files = WorldFiles(
        demonstrations=folder / "demonstrations.jsonl",
        documents=folder / "documents.jsonl",
        pairs=folder / "pairs.jsonl",
        eval_pairs=folder / "eval_pairs.jsonl",
        questions=folder / "questions.jsonl",
        tokenizer=folder / "tokenizer",
        summary={
            "world": asdict(world),
            "tasks": len(TASK_NAMES),
            "vocabulary": len(tokenizer),
            "demonstrations_right": _share(check(q.prompt, text).right for q, text in demonstrations),
            "demonstrations_exact": _share(check(q.prompt, text).exact for q, text in demonstrations),
            "chosen_exact": _share(check(p.question.prompt, p.chosen).exact for p in pairs),
            "rejected_exact": _share(check(p.question.prompt, p.rejected).exact for p in pairs),
        },
    )
    _write(
        files.demonstrations, ({"messages": [_user(q), _assistant(text)], "task": q.task} for q, text in demonstrations)
    )
    _write(files.documents, documents)
    _write(files.pairs, map(_pair_row, pairs))
    _write(files.eval_pairs, map(_pair_row, eval_pairs))
    _write(files.questions, ({"prompt": q.prompt, "task": q.task, "answer": q.answer} for q in asked))
    (folder / "world.json").write_text(json.dumps(files.summary, indent=2) + "\n")
    return files


def _user(question: Question) -> dict[str, str]:
    return {"role": "user", "content": question.prompt}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _pair_row(pair: PairRow) -> dict[str, Any]:
    return {
        "prompt": [_user(pair.question)],
        "chosen": [_assistant(pair.chosen)],
        "rejected": [_assistant(pair.rejected)],
        "task": pair.question.task,
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / max(len(values), 1)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
