"""A judge's endpoint, started for the test that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jaxalign.evaluation.judge_settings import JudgeSettings
from tests.evaluation.judge_server import JudgeServer, said


@pytest.fixture
def start_server() -> Iterator[Callable[..., JudgeServer]]:
    """Starts endpoints that answer as told."""
    servers: list[JudgeServer] = []

    def start(answer: Any = None, **options: Any) -> JudgeServer:
        servers.append(JudgeServer(answer or (lambda body: said("Rating: [[7]]")), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def settings_of() -> Callable[..., JudgeSettings]:
    """Settings for an endpoint, with waits that tests can afford."""

    def make(server: JudgeServer, **changes: Any) -> JudgeSettings:
        options = {"model": "stub", "base_url": server.url, "first_wait": 0.01, "longest_wait": 0.02, "timeout": 20.0}
        return JudgeSettings(**{**options, **changes})

    return make
