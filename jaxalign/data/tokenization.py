"""Token ids of prompts and completions, and the one place where they are cut.

Prompt and completion are tokenised separately by default: the completion's ids are those that a model writes after the
prompt's ids in generation. ``joint`` tokenises the whole text and cuts it where its ids leave those of the prompt.
A padding token is never needed: batches mask by position, so a tokenizer without one is fine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jaxalign.errors import DataError

Ids = list[int]
Tokenization = Literal["separate", "joint"]
Truncation = Literal["cut", "error", "drop"]

_ANCHORS = ("\n", "☺", "\n\n", ":")
_PROBES = ("a", " a", "The", " The", "1", "\n", ".", "é", "  b")
_BATCH = 4096


@dataclass(frozen=True)
class TokenizerView:
    """What tokenisation needs to know of a Hugging Face tokenizer.

    Attributes:
      tokenizer: the tokenizer.
      bos: id of the token that opens a text, None if there is none.
      eos: id of the token that ends a completion.
      adds_bos: whether the tokenizer itself writes `bos` before plain text.
      anchor: text after which a completion is tokenised, because this tokenizer writes a space before any text that
        stands alone (SentencePiece); "" where it does not.
      added: texts of all added tokens, special or not.
      special: ids that no user's text may hold.
      special_text: finds these tokens in text.
    """

    tokenizer: Any
    bos: int | None
    eos: int
    adds_bos: bool
    anchor: str
    added: tuple[str, ...]
    special: frozenset[int]
    special_text: re.Pattern[str] | None

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerView:
        """Look at `tokenizer`.

        Raises:
          DataError: it has no end-of-sequence token.
        """
        bos, eos, unk = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
        if eos is None:
            raise DataError("the tokenizer has no eos_token: nothing could end a completion. Set tokenizer.eos_token")
        plain, whole = (_encode(tokenizer, ["a"], add_special_tokens=s)[0] for s in (False, True))
        adds_bos = bos is not None and whole[:1] == [bos] and plain[:1] != [bos]
        tokens = tokenizer.added_tokens_decoder
        special = {i for i, t in tokens.items() if t.special} | set(tokenizer.all_special_ids)
        if unk not in (bos, eos, tokenizer.pad_token_id):
            special.discard(unk)  # unknown characters become it without any harm
        texts = sorted((str(tokenizer.convert_ids_to_tokens(i)) for i in special), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        added = tuple(str(t) for t in tokens.values())
        return cls(tokenizer, bos, eos, adds_bos, _anchor(tokenizer), added, frozenset(special), pattern)

    @cached_property
    def end_tokens(self) -> tuple[str, ...]:
        """Texts of tokens that can end a turn, the end-of-sequence token first."""
        eos = self.tokenizer.eos_token
        return (eos, *(t for t in self.added if t != eos and t.strip()))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the tokenizer's definition."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else str(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def find_special(self, text: str) -> str | None:
        """The first special token written out in the text, None if there is none."""
        found = self.special_text.search(text) if self.special_text else None
        return found.group() if found else None

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that stand alone, nothing added."""
        return [ids for i in range(0, len(texts), _BATCH) for ids in _encode(self.tokenizer, texts[i : i + _BATCH])]

    def encode_after(self, befores: Sequence[str], texts: Sequence[str]) -> list[Ids]:
        """Ids of each text as the continuation of the text before it, whose own ids stay as they are.

        After an added token the text is tokenised behind that token, otherwise behind the anchor.
        """
        anchors = [self._anchor_of(before) for before in befores]
        heads = {a: self.encode([a])[0] if a else [] for a in set(anchors)}
        result = []
        for anchor, text, ids in zip(
            anchors, texts, self.encode([a + t for a, t in zip(anchors, texts, strict=True)]), strict=True
        ):
            head = heads[anchor]
            # A text that merges with its anchor is tokenised alone.
            result.append(ids[len(head) :] if ids[: len(head)] == head else self.encode([text])[0])
        return result

    def _anchor_of(self, before: str) -> str:
        if before.endswith(self.added):
            return next(t for t in sorted(self.added, key=len, reverse=True) if before.endswith(t))
        return self.anchor if before else ""


def _encode(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool = False) -> list[Ids]:
    if not texts:
        return []
    return tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def _anchor(tokenizer: Any) -> str:
    first = tokenizer.convert_ids_to_tokens(_encode(tokenizer, ["a"])[0])[0]
    if not str(first).startswith("▁"):
        return ""
    for anchor in _ANCHORS:
        head = _encode(tokenizer, [anchor])[0]
        if all(ids[: len(head)] == head for ids in _encode(tokenizer, [anchor + p for p in _PROBES])):
            return anchor
    return ""


def tokenize_separately(
    view: TokenizerView, prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> tuple[list[Ids], list[list[Ids]]]:
    """Ids of prompts ``[E]`` and of their completions ``[E][K]``, each by itself."""
    befores = [p for p, cs in zip(prompts, completions, strict=True) for _ in cs]
    flat = iter(view.encode_after(befores, [c for cs in completions for c in cs]))
    return view.encode(prompts), [[next(flat) for _ in cs] for cs in completions]


def tokenize_jointly(
    view: TokenizerView, prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> tuple[list[Ids], list[list[Ids]]]:
    """Ids of prompts and completions, cut out of the ids of the whole text.

    The cut is the longest common token prefix of the prompt alone and all its whole texts, so that all completions
    share one prompt. A token merged over the boundary belongs to the completion.
    """
    alone = view.encode(prompts)
    flat = iter(view.encode([p + c for p, cs in zip(prompts, completions, strict=True) for c in cs]))
    cut_prompts, cut_completions = [], []
    for ids, texts in zip(alone, completions, strict=True):
        wholes = [next(flat) for _ in texts]
        cut = min(common_prefix(ids, whole) for whole in wholes)
        cut_prompts.append(ids[:cut])
        cut_completions.append([whole[cut:] for whole in wholes])
    return cut_prompts, cut_completions


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


def count_boundary_differences(
    view: TokenizerView, prompts: Sequence[str], completions: Sequence[Sequence[str]], window: int = 64
) -> int:
    """Completions whose ids, or whose prompt's ids, the other policy would change.

    Only `window` characters on each side of the boundary are compared: tokenisation is local.
    """
    tails = [prompt[-window:] for prompt in prompts]
    heads = [[text[:window] for text in texts] for texts in completions]
    alone, after = tokenize_separately(view, tails, heads)
    joint = iter(view.encode([tail + head for tail, texts in zip(tails, heads, strict=True) for head in texts]))
    return sum(next(joint) != a + b for a, texts in zip(alone, after, strict=True) for b in texts)


@dataclass(frozen=True)
class Limits:
    """Longest lengths, tokens; None = no limit.

    Attributes:
      max_length: of prompt plus each completion, BOS and terminator included.
      max_prompt_length: of the prompt. None = a prompt is cut only where it and its longest completion do not fit
        `max_length` together, and never to less than half of it.
      max_completion_length: of each completion.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_completion_length: int | None = None


@dataclass(frozen=True)
class Truncated:
    """What `truncate` made of an example.

    Attributes:
      prompt: kept ids.
      completions: kept ids of each completion.
      prompt_cut: tokens removed from the prompt.
      completion_cut: tokens removed from each completion.
      eos_lost: for each completion, whether its terminator is gone.
      reason: why the example cannot be used, None if it can: ``too long``, ``prompt too long``,
        ``answer fully truncated``, ``identical after truncation``.
    """

    prompt: Ids
    completions: tuple[Ids, ...]
    prompt_cut: int = 0
    completion_cut: tuple[int, ...] = ()
    eos_lost: tuple[bool, ...] = ()
    reason: str | None = None

    @property
    def dropped(self) -> bool:
        """Whether the example cannot be used."""
        return self.reason is not None


def truncate(
    prompt: Ids,
    completions: Sequence[Ids],
    limits: Limits,
    *,
    bos: int | None = None,
    cut: bool = True,
    pair: bool | None = None,
) -> Truncated:
    """Cut an example to the limits: prompts on the left, behind their BOS; completions on the right.

    All completions keep the same prompt.

    Args:
      prompt: ids, BOS first where there is one.
      completions: ids of each, the terminator last.
      limits: the longest lengths.
      bos: id that stays at the start of a cut prompt.
      cut: False = an example that does not fit is not cut but unusable, ``too long``.
      pair: whether the first two must still differ when they are cut; None = if there are two.
    """
    unlimited = len(prompt) + max(map(len, completions))
    total = unlimited if limits.max_length is None else limits.max_length
    kept = [
        len(c) if limits.max_completion_length is None else min(len(c), limits.max_completion_length)
        for c in completions
    ]
    if limits.max_prompt_length is None:
        room = max(total - max(kept), total // 2)
    else:
        room = limits.max_prompt_length
    size = min(len(prompt), room)
    kept = [min(k, total - size) for k in kept]
    none = tuple(map(list, completions))
    if not cut and (size < len(prompt) or any(k < len(c) for k, c in zip(kept, completions, strict=True))):
        return Truncated(prompt, none, reason="too long")
    if size > total or size == 0:
        return Truncated(prompt, none, reason="prompt too long")
    if min(kept) < 1:
        return Truncated(prompt, none, reason="answer fully truncated")
    short = _keep_end(prompt, size, bos)
    answers = tuple(list(c[:k]) for c, k in zip(completions, kept, strict=True))
    lost = tuple(k < len(c) for k, c in zip(kept, completions, strict=True))
    pair = len(answers) == 2 if pair is None else pair
    same = pair and answers[0] == answers[1] and list(completions[0]) != list(completions[1])
    return Truncated(
        short,
        answers,
        len(prompt) - size,
        tuple(len(c) - k for k, c in zip(kept, completions, strict=True)),
        lost,
        "identical after truncation" if same else None,
    )


def _keep_end(prompt: Ids, size: int, bos: int | None) -> Ids:
    if size >= len(prompt):
        return list(prompt)
    if bos is not None and prompt[0] == bos and size > 1:
        return [bos, *prompt[len(prompt) - size + 1 :]]
    return list(prompt[len(prompt) - size :])
