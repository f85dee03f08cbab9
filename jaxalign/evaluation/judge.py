"""A judge: a language model behind an OpenAI-compatible chat endpoint, asked with patience and never twice.

Every answer is kept on disk under the content of its request as soon as it arrives. A run that was killed, or whose
judgments are computed anew, asks only what has not been answered.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError, JaxalignError, did_you_mean, some
from jaxalign.evaluation.journal import Journal
from jaxalign.evaluation.judge_pace import Pace, growing_wait, retry_after
from jaxalign.evaluation.judge_settings import JudgeSettings

INSTALL = "judged benchmarks need the package openai; install it with: pip install 'jaxalign[benchmarks]'."
LONGEST_PAUSE = 600.0
"""An endpoint that asks for more pauses than this for one request, in seconds, has used up its quota."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a judge is asked.

    Attributes:
      messages: ``{"role", "content"}`` each.
      max_tokens: most tokens of the answer.
      temperature: of sampling.
      top_logprobs: for this many likeliest first tokens the log-probability is asked; 0 = none.
      repeat: number of the repetition, where the same is asked several times to see how much the judge wavers.
    """

    messages: Sequence[Mapping[str, str]]
    max_tokens: int = 2048
    temperature: float = 0.0
    top_logprobs: int = 0
    repeat: int = 0

    def key(self, model: str) -> str:
        """SHA-256 of all that the answer depends on. Where the endpoint is does not count: it moves."""
        content = {**asdict(self), "messages": [dict(message) for message in self.messages], "model": model}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge answered.

    Attributes:
      text: the answer; empty if there is none.
      logprobs: of the likeliest first tokens, nats; None if the endpoint gives none.
      prompt_tokens: as the endpoint counts.
      completion_tokens: the same.
      time: when it came, seconds since 1970.
      error: why the endpoint refused this request; such a reply is not kept, and is asked again next time.
    """

    text: str
    logprobs: Mapping[str, float] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    time: float = 0.0
    error: str | None = None


@dataclass
class Usage:
    """Tokens of all replies that were used, and the work of this process.

    Attributes:
      replies: replies, kept ones included.
      prompt_tokens: of these.
      completion_tokens: of these.
      sent: requests that this process has sent, retries included.
      retries: of them, those sent again.
      kept: replies that were on disk already.
    """

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sent: int = 0
    retries: int = 0
    kept: int = 0
    _seen: set[str] = field(default_factory=set, repr=False)

    def add(self, key: str, reply: Reply) -> None:
        """Counts a reply once."""
        if key not in self._seen and reply.error is None:
            self._seen.add(key)
            self.replies += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens


class Judge:
    """Asks a judge, many requests at a time. Close it, or use it in a ``with`` statement."""

    def __init__(self, settings: JudgeSettings, cache: str | Path):
        """Nothing is sent yet.

        Args:
          settings: who judges.
          cache: the file that keeps the answers.

        Raises:
          ConfigError: openai is not installed, there is no key for OpenAI's own endpoint, or the cache is in use.
          DataError: the cache is damaged.
        """
        try:
            import openai
        except ImportError as error:
            raise ConfigError(INSTALL) from error
        key = os.environ.get(settings.api_key_env)
        if not key and settings.url is None:
            raise ConfigError(
                f"judge: no key in the environment variable {settings.api_key_env}; set it, or name an endpoint of "
                "your own, such as --judge=http://localhost:8000/v1."
            )
        self.settings = settings
        self.usage = Usage()
        self._openai = openai
        self._journal = Journal(cache)
        self._kept = {record["key"]: Reply(**record["reply"]) for record in self._journal.records}
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=settings.url, timeout=settings.timeout, max_retries=0
        )
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._checked = False

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and frees the cache."""
        self._client.close()
        self._journal.close()

    def check(self) -> None:
        """Asks for one token, once, so that a wrong key, name or address is known before any work is spent.

        Raises:
          ConfigError: with what to do.
        """
        if not self._checked:
            request = Request(messages=[{"role": "user", "content": "Say yes."}], max_tokens=1)
            reply = self._send(request, patient=False)
            if reply.error is not None:
                raise ConfigError(
                    f"judge: {self._where()} refuses to answer as {self.settings.model!r}: {reply.error}."
                )
            self._checked = True

    def has_logprobs(self) -> bool:
        """Whether the endpoint tells the log-probabilities of the likeliest first tokens."""
        messages = [{"role": "user", "content": "Answer with one letter, m or M."}]
        return bool(self.ask([Request(messages=messages, max_tokens=1, top_logprobs=5)])[0].logprobs)

    def ask(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Reply]:
        """The replies, in the order of the requests. What is on disk is not asked; equal requests are asked once.

        Args:
          requests: what to ask.
          progress: called with the number of replies that are there and of all.

        Raises:
          ConfigError: the endpoint refuses the key or the model.
          JaxalignError: it stopped answering. What was answered is kept.
        """
        keys = [request.key(self.settings.model) for request in requests]
        missing = {k: request for k, request in zip(keys, requests, strict=True) if k not in self._kept}
        self.usage.kept += len(set(keys)) - len(missing)
        found: dict[str, Reply] = {}
        if missing:
            self.check()
            found = self._ask_all(missing, len(set(keys)), progress)
        replies = [self._kept.get(key) or found[key] for key in keys]
        for key, reply in zip(keys, replies, strict=True):
            self.usage.add(key, reply)
        return replies

    def costs(self) -> dict[str, Any]:
        """Tokens of all replies used so far, and their price where one was given; the same after a restart."""
        usage, settings = self.usage, self.settings
        costs: dict[str, Any] = {
            "replies": usage.replies,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if settings.price_in is not None or settings.price_out is not None:
            paid = usage.prompt_tokens * (settings.price_in or 0) + usage.completion_tokens * (settings.price_out or 0)
            costs["cost"] = paid / 1e6
        return costs

    def _ask_all(
        self, requests: Mapping[str, Request], total: int, progress: Callable[[int, int], None] | None
    ) -> dict[str, Reply]:
        found: dict[str, Reply] = {}

        def one(key: str, request: Request) -> None:
            if self._stop.is_set():
                return
            reply = self._send(request)
            if reply.error is None:
                self._journal.append({"key": key, "model": self.settings.model, "reply": asdict(reply)})
            with self._lock:
                if reply.error is None:
                    self._kept[key] = reply
                found[key] = reply
                if progress is not None:
                    progress(total - len(requests) + len(found), total)

        executor = ThreadPoolExecutor(self.settings.concurrency)
        try:
            futures = [executor.submit(one, key, request) for key, request in requests.items()]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except JaxalignError as error:
            if type(error) is not JaxalignError:
                raise
            kept = sum(reply.error is None for reply in found.values())
            raise JaxalignError(
                f"{error} {kept} of {len(requests)} requests were answered and are kept in {self._journal.path}; the "
                "same command asks only the others."
            ) from error
        finally:
            self._stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()
        return found

    def _send(self, request: Request, *, patient: bool = True) -> Reply:
        """Sends a request until it is answered. If not patient, an endpoint that cannot be reached is given up soon."""
        openai, settings = self._openai, self.settings
        attempt, paused = 0, 0.0
        while True:
            try:
                return self._send_once(request)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise ConfigError(
                    f"judge: {self._where()} refuses the key ({_said(error)}); set the environment variable "
                    f"{settings.api_key_env}."
                ) from error
            except openai.NotFoundError as error:
                raise ConfigError(self._unknown_model(error)) from error
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise ConfigError(f"judge: {self._where()} has no quota left ({_said(error)}).") from error
                problem, delay = _said(error), retry_after(error.response.headers)
            except openai.InternalServerError as error:
                problem, delay = _said(error), retry_after(error.response.headers)
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 425):
                    return Reply(text="", error=_said(error), time=time.time())
                problem, delay = _said(error), retry_after(error.response.headers)
            except openai.APITimeoutError:
                problem, delay = f"no answer in {settings.timeout:g} s", None
            except openai.APIConnectionError as error:
                problem, delay = f"cannot be reached ({error.__cause__ or error})", None
                if not patient and attempt >= 2:
                    raise ConfigError(
                        f"judge: {self._where()} {problem}; is the server running, and is the address right?"
                    ) from error
            except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
                problem, delay = f"answered something that is no chat completion ({error!r})", None
            paused += delay or 0.0
            if paused > LONGEST_PAUSE:
                raise JaxalignError(f"judge: {self._where()} asks to wait for {paused:.0f} s in all ({problem}).")
            if (attempt >= settings.retries and not delay) or self._stop.is_set():
                kind = JaxalignError if patient else ConfigError
                raise kind(f"judge: {self._where()} gave no answer in {attempt + 1} attempts; the last: {problem}.")
            if delay:
                # An endpoint that says when it will answer is alive: this is no attempt that failed.
                self._pace.pause(delay)
            else:
                self._stop.wait(growing_wait(attempt, settings.first_wait, settings.longest_wait))
                attempt += 1
            with self._lock:
                self.usage.retries += 1

    def _send_once(self, request: Request) -> Reply:
        # Four characters a token is what English has; the ticket is put right by the answer.
        estimate = sum(len(message["content"]) for message in request.messages) / 4 + request.max_tokens
        ticket = self._pace.wait(estimate)
        with self._lock:
            self.usage.sent += 1
        options: dict[str, Any] = (
            {"logprobs": True, "top_logprobs": request.top_logprobs} if request.top_logprobs else {}
        )
        messages: Any = [dict(message) for message in request.messages]
        answer = self._client.chat.completions.create(
            model=self.settings.model,
            messages=messages,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            n=1,
            **options,
        )
        choice, usage = answer.choices[0], answer.usage
        content = choice.logprobs.content if request.top_logprobs and choice.logprobs is not None else None
        prompt_tokens = usage.prompt_tokens if usage else 0
        completion_tokens = usage.completion_tokens if usage else 0
        if usage:
            self._pace.settle(ticket, prompt_tokens + completion_tokens)
        return Reply(
            text=choice.message.content or "",
            logprobs={top.token: top.logprob for top in content[0].top_logprobs} if content else None,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            time=time.time(),
        )

    def _where(self) -> str:
        return self.settings.url or "the endpoint of OpenAI"

    def _unknown_model(self, error: Exception) -> str:
        model = self.settings.model
        try:
            names = sorted(entry.id for entry in self._client.models.list())
        except (self._openai.OpenAIError, ValueError, AttributeError, TypeError):
            names = []
        if names and model not in names:
            known = f"expected one of {some(names, 20)}.{did_you_mean(model, names)}"
            return f"judge: {self._where()} has no model {model!r}, {known}"
        return (
            f"judge: {self._where()} does not know the model {model!r}, or is no chat endpoint ({_said(error)}); its "
            "address usually ends with /v1."
        )


def _said(error: Any) -> str:
    """An endpoint's error in a line."""
    return " ".join(str(getattr(error, "message", error)).split())[:300]
