"""The `data` section of a run's configuration, the longest one: where examples come from and how they become tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxalign.ranges import Range


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The examples: where they come from and how they become tokens."""

    train: Annotated[
        tuple[str, ...], "Training data: JSONL, JSON or Parquet files (also .gz), folders, globs, or a datasets name."
    ] = ()
    eval: Annotated[tuple[str, ...], "Held-out data, in the same forms; empty = `eval_size` of `train`."] = ()
    train_split: Annotated[str, "Split of `train` when it is a datasets name."] = "train"
    eval_split: Annotated[str, "Split of `eval` when it is a datasets name."] = "test"
    subset: Annotated[str | None, "Subset (datasets calls it the configuration) of a datasets name."] = None
    eval_size: Annotated[int, "Examples held out of `train` when `eval` is empty; 0 = none.", Range(ge=0)] = 0
    columns: Annotated[Mapping[str, str], 'Our column name -> yours: {"prompt": "question"}.'] = field(
        default_factory=dict
    )
    max_length: Annotated[
        int | None,
        "Longest prompt plus completion, tokens; none = 1024, or all positions of a shorter model.",
        Range(ge=2),
    ] = None
    max_prompt_length: Annotated[int | None, "Longest prompt, tokens; none = no limit of its own.", Range(ge=1)] = None
    max_completion_length: Annotated[
        int | None, "Longest completion, tokens; none = no limit of its own.", Range(ge=1)
    ] = None
    truncation: Annotated[
        Literal["cut", "error", "drop"],
        "Examples that are too long: cut prompts at their start and completions at their end (and count), stop, or"
        " drop them (and count).",
    ] = "cut"
    turns: Annotated[
        Literal["last", "all"], "Which of the assistant's turns a conversation's supervised examples are."
    ] = "last"
    tokenization: Annotated[
        Literal["separate", "joint"],
        "separate = prompt and completion each by itself, as in generation; joint = the whole text, then cut.",
    ] = "separate"
    on_bad: Annotated[
        Literal["strict", "drop"], "Rows that break the data contract: stop with all of them, or drop and count them."
    ] = "strict"
    tolerance: Annotated[
        float,
        "Share of rows that strict leaves out (and counts) for each of the flaws that published sets have.",
        Range(ge=0, le=1),
    ] = 0.01
    special_tokens: Annotated[
        Literal["reject", "allow"], "Control tokens written out in the text of a row: a problem, or meant."
    ] = "reject"
    one_class: Annotated[
        Literal["reject", "allow"], "Unpaired data whose labels are all the same: a problem, or meant."
    ] = "reject"
    size: Annotated[
        int | None,
        "Training examples to use: the first of a seeded order, so a smaller size is part of a larger one; none = all."
        " Of a pair that is read as two labelled answers both are taken, and count once.",
        Range(ge=1),
    ] = None
    loss_on: Annotated[
        Literal["completion", "all"], "Tokens that supervised methods learn: the completion's, or the prompt's as well."
    ] = "completion"
    pairs_per_prompt: Annotated[
        Literal["extremes", "all"], "Pairs made of a ranking: its best and worst answer, or all with different scores."
    ] = "extremes"
    max_completions: Annotated[
        int | None, "Longest ranking; of a longer one the best and the worst answers are kept. none = all.", Range(ge=2)
    ] = None
    step_separator: Annotated[str, "What stands between two steps of an answer given in steps."] = "\n"
    last_step_only: Annotated[bool, "Of the labels of an answer's steps, keep only that of the last step."] = False
    damaged: Annotated[
        Literal["chosen", "rejected", "both"], "Answers of a pair that lose key phrases, for methods that ask for it."
    ] = "both"
    mark_stop_words: Annotated[
        bool, "Whether tokens that are stop words count as differences of a pair, for methods that ask for them."
    ] = False
    row_length: Annotated[
        int | None, "Tokens in a packed row; none = chosen from the lengths of the data.", Range(ge=2)
    ] = None
    seed: Annotated[int, "Seed of the held-out split and of the order of examples.", Range(ge=0)] = 0
