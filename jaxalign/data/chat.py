"""Chat templates: conversations as the text that the model reads, in training as in generation.

The prompt is rendered with the generation prompt, the answer is what the whole conversation adds to that text. A
template for which the whole does not begin with the prompt, or which changes the answer, is refused: the model would
be trained on something that it never sees when it generates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.records import Messages, Record
from jaxalign.errors import DataError

CHATML = (
    "{% if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, for tokenizers that have no template of their own."""

BUILT_IN = MappingProxyType({"chatml": CHATML})


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the tokenizer that renders it.

    Attributes:
      tokenizer: a Hugging Face tokenizer; the template sees its special tokens.
      text: the template.
      name: where it comes from, for messages.
    """

    tokenizer: Any
    text: str
    name: str

    @property
    def content_hash(self) -> str:
        """SHA-256 of the template's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(
        self,
        messages: Messages,
        *,
        generation: bool,
        tools: Sequence[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; with `generation`, up to where the model's answer begins.

        Raises:
          RowProblem: the template refuses the conversation, for example because it knows no system role.
        """
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
                tools=tools,
                **(arguments or {}),
            )
        except Exception as error:  # Jinja's, or whatever the template's expressions raise
            roles = _roles(messages)
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RowProblem(
                "template failure", f"the chat template {self.name} refuses a conversation of {roles}: {said}"
            ) from None


@dataclass(frozen=True)
class RenderedRecord:
    """The texts of a record: ``prompt + completion`` is what the model reads.

    Attributes:
      prompt: text, the template's generation prompt included.
      completions: texts up to the turn's end token where the template writes one.
      ended: for each completion, whether the template ended it with a token.
      chat: whether a template wrote them, so that no token may be added before the prompt.
      dropped_tools: the row has tools and the template does not show them.
    """

    prompt: str
    completions: tuple[str, ...]
    ended: tuple[bool, ...]
    chat: bool
    dropped_tools: bool = False


def load_chat_template(tokenizer: Any, override: str | Path | None = None) -> ChatTemplate | None:
    """The template to use, None if there is none.

    Args:
      tokenizer: a Hugging Face tokenizer.
      override: a path, a template's text, or the name ``chatml``; None = the tokenizer's own.

    Raises:
      DataError: the file does not exist or is not UTF-8.
    """
    if override is None:
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, Mapping):  # several named templates
            own = own.get("default")
        return ChatTemplate(tokenizer, own, "of the tokenizer") if own else None
    if str(override) in BUILT_IN:
        return ChatTemplate(tokenizer, BUILT_IN[str(override)], str(override))
    if isinstance(override, str) and ("{{" in override or "{%" in override):
        return ChatTemplate(tokenizer, override, "given as text")
    path = Path(override).expanduser()
    try:
        return ChatTemplate(tokenizer, path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"model.chat_template: {override} cannot be read ({error}); expected a template file, or one of "
            f"{', '.join(BUILT_IN)}"
        ) from error


def render_record(record: Record, template: ChatTemplate | None, end_tokens: Sequence[str]) -> RenderedRecord:
    """The record's texts. Plain text needs no template.

    Args:
      record: a row in normal form.
      template: for conversations.
      end_tokens: texts of the tokens that can end a turn, the tokenizer's end-of-sequence token first.

    Raises:
      RowProblem: there is no template, or it refuses or changes the conversation.
    """
    if isinstance(record.prompt, str):
        plain = tuple(str(c) for c in record.completions)
        return RenderedRecord(record.prompt, plain, (False,) * len(plain), chat=False)
    if template is None:
        raise RowProblem("no chat template", "the row is a conversation, and the tokenizer has no chat template")
    given: dict[str, Any] = {"tools": record.tools, "arguments": record.template_arguments}
    prompt = template.render(record.prompt, generation=True, **given)
    _check_prompt(record.prompt, prompt, template)
    completions = []
    for answer in record.completions:
        assert not isinstance(answer, str)
        whole = template.render([*record.prompt, *answer], generation=False, **given)
        completions.append(_completion(prompt, whole, record.prompt, answer, template, end_tokens))
    dropped = record.tools is not None and "tools" not in template.text
    texts, ended = zip(*completions, strict=True)
    return RenderedRecord(prompt, texts, ended, chat=True, dropped_tools=dropped)


def _check_prompt(messages: Messages, prompt: str, template: ChatTemplate) -> None:
    for message in messages:
        if message["role"] != "assistant" and message["content"].strip() not in prompt:
            raise RowProblem(
                "template failure", f"the chat template {template.name} leaves out or changes a {message['role']} turn"
            )


def _completion(
    prompt: str,
    whole: str,
    messages: Messages,
    answer: Messages,
    template: ChatTemplate,
    end_tokens: Sequence[str],
) -> tuple[str, bool]:
    if not whole.startswith(prompt):
        at = next(
            (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
        )
        near = f"{prompt[at : at + 20]!r} in the prompt alone, {whole[at : at + 20]!r} in the whole"
        if (prompt[at : at + 1] + whole[at : at + 1]).strip(" \n") != prompt[at : at + 1] + whole[at : at + 1]:
            near += "; is the template indented for reading? Its white space is text"
        raise RowProblem(
            "template failure",
            f"the chat template {template.name} is not prefix preserving: for a conversation of "
            f"{_roles([*messages, *answer])} the whole does not begin with the prompt ({near})",
        )
    text = whole[len(prompt) :]
    for message in answer:
        if message["content"].strip() not in text:
            raise RowProblem(
                "template failure",
                f"the chat template {template.name} leaves out or changes part of the answer (some remove what stands "
                "before </think>)",
            )
    return _until_end(text, answer[-1]["content"].strip(), end_tokens)


def _until_end(text: str, said: str, end_tokens: Sequence[str]) -> tuple[str, bool]:
    """`text` without what the template writes after the token that ends the turn, and whether there is such a token."""
    start = text.rfind(said) + len(said) if said else 0
    for token in end_tokens:
        at = text.rfind(token, start)
        if at >= 0 and (token == end_tokens[0] or not text[at + len(token) :].strip()):
            return text[: at + len(token)], True
    return text[:start] + text[start:].rstrip() if said else text.rstrip(), False


def _roles(messages: Messages) -> str:
    return ", ".join(m["role"] for m in messages)
