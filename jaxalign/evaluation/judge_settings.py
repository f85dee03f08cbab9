"""Which model judges, where it is, and how hard it may be pressed."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from jaxalign.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Which model judges, where it is, and how hard it may be pressed.

    Attributes:
      model: its name at the endpoint.
      base_url: of the endpoint, ``http://localhost:8000/v1``; without a path, ``/v1`` is added. None = OpenAI's.
      api_key_env: the environment variable that holds the key. Endpoints of one's own often need none.
      concurrency: requests under way at once.
      requests_per_minute: most requests sent in 60 s; None = no limit.
      tokens_per_minute: most tokens, of prompts and answers; None = no limit.
      timeout: seconds after which a request without answer is sent again.
      retries: how often a request is sent again after a timeout, a lost connection, 429 or 5xx. Where the endpoint says
        how long to wait (Retry-After), it is waited that long, and the retry is not counted.
      first_wait: seconds before the first retry; doubled each time.
      longest_wait: most seconds between retries.
      price_in: of a million tokens of prompts, in any currency; None = costs are not counted.
      price_out: of a million tokens of answers.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self):
        problems = []
        if not self.model:
            problems.append("judge model: missing, expected its name at the endpoint, such as gpt-4-1106-preview.")
        if self.base_url is not None and urlsplit(self.base_url).scheme not in ("http", "https"):
            problems.append(f"judge: got {self.base_url!r}, expected a URL such as http://localhost:8000/v1.")
        for name in (
            "concurrency",
            "timeout",
            "first_wait",
            "longest_wait",
            "requests_per_minute",
            "tokens_per_minute",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                problems.append(f"judge {name}: got {value}, expected a number above 0.")
        if self.retries < 0:
            problems.append(f"judge retries: got {self.retries}, expected 0 or more.")
        if problems:
            raise ConfigError(problems)

    @property
    def url(self) -> str | None:
        """The base URL with its path."""
        if self.base_url is None:
            return None
        return self.base_url.rstrip("/") + ("" if urlsplit(self.base_url).path.strip("/") else "/v1")
