"""A world that the project generates itself, with a known right answer. See `language` and `world`."""

from jaxalign.data.synthetic.language import TASK_NAMES, Grade, Question, answer, check, read
from jaxalign.data.synthetic.tokenizer import train_tokenizer
from jaxalign.data.synthetic.world import World, WorldFiles, held_out, write_world

__all__ = [
    "TASK_NAMES",
    "Grade",
    "Question",
    "World",
    "WorldFiles",
    "answer",
    "check",
    "held_out",
    "read",
    "train_tokenizer",
    "write_world",
]
