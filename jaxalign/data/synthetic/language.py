"""An instruction language with a known right answer: ten tasks on lists of animals.

``"Sort: fox cat hen"`` asks for ``"cat fox hen"``. Every prompt can be read back, so `answer` and `check` work on plain
text and need no file: they judge what a model wrote, whatever wrote it. An answer is *right* if it is the answer, with
or without a chatty opening, and *exact* if it is nothing but the answer.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxalign.errors import DataError, did_you_mean

# One word per letter, a to l, each a single token, so that alphabetical order can be learnt from lists alone.
_ANIMALS = "ant bee cat dog eel fox gnu hen ibex jay koala lynx"
WORDS = tuple(_ANIMALS.split())
SHORTEST, LONGEST = 3, 4  # words in a list

# What a chatty answer opens with.
OPENINGS = ("Sure! Here you go:", "Of course! It is", "Great question! I think")

Words = list[str]


class Task(NamedTuple):
    """One kind of instruction.

    Attributes:
      name: its name in the data files and reports.
      wordings: ways to ask for it; ``{word}`` stands for the word that the task is about.
      solve: the right answer, from the list and that word.
      slip: the typical mistake. On some lists it happens to be the right answer, and then counts as right.
    """

    name: str
    wordings: tuple[str, ...]
    solve: Callable[[Words, str], Words]
    slip: Callable[[Words, str], Words]

    @property
    def has_word(self) -> bool:
        """Whether the instruction is about one word of the list."""
        return "{word}" in self.wordings[0]


def _without(items: Words, word: str) -> Words:
    return [item for item in items if item != word]


def _ends_swapped(items: Words) -> Words:
    return [items[-1], *items[1:-1], items[0]]


def _start_swapped(items: Words) -> Words:
    return [items[1], items[0], *items[2:]]


# x is the list, w the word.
TASKS = (
    Task("repeat", ("Repeat", "Say again"), lambda x, w: x, lambda x, w: x[:-1]),
    Task("first", ("First word", "Give the first"), lambda x, w: x[:1], lambda x, w: x[1:2]),
    Task("last", ("Last word", "Give the last"), lambda x, w: x[-1:], lambda x, w: x[-2:-1]),
    Task("count", ("Count", "How many"), lambda x, w: [str(len(x))], lambda x, w: [str(SHORTEST + LONGEST - len(x))]),
    Task("drop-first", ("Drop the first", "Leave out the first"), lambda x, w: x[1:], lambda x, w: x[:-1]),
    Task("remove", ("Remove {word}", "Take out {word}"), _without, lambda x, w: x),
    Task("reverse", ("Reverse", "Write backwards"), lambda x, w: x[::-1], lambda x, w: x[-2::-1] + x[-1:]),
    Task(
        "swap-ends",
        ("Swap the ends", "Swap first and last"),
        lambda x, w: _ends_swapped(x),
        lambda x, w: _start_swapped(x),
    ),
    Task("sort", ("Sort", "Put in order"), lambda x, w: sorted(x), lambda x, w: sorted(x[:-1]) + x[-1:]),
    Task("earliest", ("First in the alphabet", "Nearest to a"), lambda x, w: [min(x)], lambda x, w: x[:1]),
)
TASK_NAMES = tuple(task.name for task in TASKS)
_BY_NAME = {task.name: task for task in TASKS}
# An instruction with its word taken out, to its task.
_BY_WORDING = {wording: task for task in TASKS for wording in task.wordings}
_ANY_WORD = re.compile(r"\b(" + "|".join(WORDS) + r")\b")


@dataclass(frozen=True)
class Question:
    """One instruction, in parts.

    Attributes:
      task: name of the task.
      wording: the way it is asked, one of the task's wordings.
      items: the list, 3 or 4 different words.
      word: the word that the instruction is about, or ``""``.
    """

    task: str
    wording: str
    items: tuple[str, ...]
    word: str = ""

    @property
    def prompt(self) -> str:
        """The instruction as text: ``"Sort: fox cat hen"``."""
        return f"{self.wording.format(word=self.word)}: {' '.join(self.items)}"

    @property
    def answer(self) -> str:
        """The right answer as text: ``"cat fox hen"``."""
        return " ".join(_BY_NAME[self.task].solve(list(self.items), self.word))

    @property
    def slip(self) -> str:
        """The answer with the task's typical mistake."""
        return " ".join(_BY_NAME[self.task].slip(list(self.items), self.word))


class Grade(NamedTuple):
    """How good a response is.

    Attributes:
      right: it gives the right answer, perhaps after a chatty opening.
      exact: it is the right answer and nothing else.
    """

    right: bool
    exact: bool


def ask(rng: random.Random, items: Words) -> Question:
    """A random instruction about the list."""
    task = rng.choice(TASKS)
    return Question(
        task.name, rng.choice(task.wordings), tuple(items), rng.choice(list(items)) if task.has_word else ""
    )


def read(prompt: str) -> Question:
    """Takes a prompt of this language apart.

    Raises:
      DataError: the text is not a prompt of this language.
    """
    instruction, _, listed = prompt.strip().partition(":")
    items = tuple(listed.split())
    match = _ANY_WORD.search(instruction)
    word = match.group() if match else ""
    wording = _ANY_WORD.sub("{word}", instruction)
    task = _BY_WORDING.get(wording)
    if task is None:
        hint = did_you_mean(wording, _BY_WORDING)
        raise DataError(f"{prompt!r} does not start with an instruction of the generated world.{hint}")
    if not items or set(items) - set(WORDS):
        raise DataError(f"{prompt!r}: expected a list of animals after the colon, got {listed.strip()!r}.")
    return Question(task.name, wording, items, word)


def answer(prompt: str) -> str:
    """The right answer to a prompt, as text."""
    return read(prompt).answer


def check(prompt: str, response: str) -> Grade:
    """Grades a response to a prompt. White space at both ends and between words does not count."""
    said, expected = " ".join(response.split()), answer(prompt)
    exact = said == expected
    return Grade(right=exact or without_opening(said) == expected, exact=exact)


def chatty(rng: random.Random, text: str) -> str:
    """The answer after a random chatty opening."""
    return f"{rng.choice(OPENINGS)} {text}"


def without_opening(text: str) -> str:
    """The answer without its chatty opening, if it has one."""
    for opening in OPENINGS:
        if text.startswith(opening + " "):
            return text[len(opening) + 1 :]
    return text
