"""An OpenAI-compatible chat endpoint for tests, with faults on demand and every request on record."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBE = "Say yes."


def said(text: str, logprobs: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A chat completion. Four characters count as a token."""
    content = None
    if logprobs is not None:
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
        content = {"content": [{**top[0], "top_logprobs": top}]}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": content,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": len(text) // 4, "total_tokens": 100 + len(text) // 4},
    }


class JudgeServer:
    """Answers with ``answer(body)``. `faults` are taken one a request, before it: see `fault`."""

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]], models: tuple[str, ...] = ("stub",)):
        self.answer, self.models = answer, models
        self.faults: list[tuple[Any, ...] | None] = []
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.hold_after: int | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # one packet an answer: without it each waits for an acknowledgement

            def log_message(self, *arguments: Any) -> None:
                pass

            def reply(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **(headers or {})}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client has gone

            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in server.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                    fault = server.faults.pop(0) if server.faults else None
                    if fault is None:
                        held = server.hold_after is not None and len(server.asked()) >= server.hold_after
                        if not held:
                            server.requests.append(body)
                            server.times.append(time.monotonic())
                try:
                    if fault is not None:
                        server.fault(self, *fault)
                    elif held:
                        server.released.wait(60)
                        self.close_connection = True
                    elif body["model"] not in server.models:
                        self.reply(404, {"error": {"message": "no such model", "code": "model_not_found"}})
                    else:
                        self.reply(200, server.answer(body))
                finally:
                    with server.lock:
                        server.busy -= 1

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # clients that are killed close their connections
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def fault(self, handler: Any, kind: Any, *rest: Any) -> None:
        """``(status, headers, code)`` is an HTTP error, ``("hang", seconds)`` no answer, ``("garbage",)`` no chat."""
        if kind == "hang":
            self.released.wait(rest[0])
            handler.close_connection = True
        elif kind == "garbage":
            handler.reply(200, b"<html>It works!</html>", {"content-type": "text/html"})
        else:
            headers, code = (*rest, {}, None)[:2] if len(rest) < 2 else rest[:2]
            handler.reply(kind, {"error": {"message": f"error {kind}", "code": code}}, headers)

    def asked(self) -> list[dict[str, Any]]:
        """Requests that were answered, but for the one that only checks the endpoint."""
        return [body for body in self.requests if body["messages"][-1]["content"] != PROBE]

    def repeated(self) -> int:
        """How many requests were answered more than once."""
        counts = Counter(json.dumps(body, sort_keys=True) for body in self.asked())
        return sum(count - 1 for count in counts.values())

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
