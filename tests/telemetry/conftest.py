"""
A receiver that speaks OTLP/HTTP, in a thread, on a real socket.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def plain(value: Any) -> Any:
    """
    An OTLP attribute value.
    """
    return getattr(value, value.WhichOneof("value"))


class Receiver:
    """
    `answers` (status, body, seconds to wait) are given in turn, then 200.
    """

    def __init__(self, port: int = 0, decode: Callable[[bytes], Any] = ExportTraceServiceRequest.FromString) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._hear(self)

            def log_message(self, *_: object) -> None:
                """
                Not on standard error.
                """

        self._decode = decode
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answers: deque[tuple[int, bytes, float]] = deque()
        self._waiting = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _hear(self, asked: BaseHTTPRequestHandler) -> None:
        body = asked.rfile.read(int(asked.headers["Content-Length"]))
        status, answer, wait_s = self.answers.popleft() if self.answers else (200, b"", 0.0)
        headers = {name.lower(): value for name, value in asked.headers.items()}
        self._waiting.wait(wait_s)
        self.requests.append((asked.path, headers, self._decode(body)))
        with contextlib.suppress(ConnectionError):  # the sender does not wait for it
            asked.send_response(status)
            asked.send_header("Content-Length", str(len(answer)))
            asked.end_headers()
            asked.wfile.write(answer)

    @property
    def spans(self) -> list[dict[str, Any]]:
        """
        All spans so far, with the attributes of their process under `resource`.
        """
        return [
            {
                "name": span.name,
                "kind": span.kind,
                "trace": span.trace_id.hex(),
                "id": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "state": span.trace_state,
                "ns": span.end_time_unix_nano - span.start_time_unix_nano,
                "began": span.start_time_unix_nano / 1e9,
                "error": span.status.code == 2,
                "attributes": {one.key: plain(one.value) for one in span.attributes},
                "resource": {one.key: plain(one.value) for one in whole.resource.attributes},
            }
            for _, _, request in list(self.requests)
            for whole in request.resource_spans
            for scope in whole.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self._waiting.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """
    Start receivers.
    """
    running: list[Receiver] = []

    def start(*arguments: Any) -> Receiver:
        running.append(Receiver(*arguments))
        return running[-1]

    yield start
    for one in running:
        one.close()
