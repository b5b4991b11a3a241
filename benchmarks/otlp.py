"""
Durable OTLP spans over HTTP against decoding them only.

The floor parses the same binary requests with protobuf and walks all attributes into dicts, on one core, and throws them away.
The figure is what a sender sees: HTTP, mapping, prices, the bus, LMDB with its fsync, 200. Collector and storage are one process
each, as in the daemon. Rounds alternate, every request is sent once, and the median of the rounds' ratios is told.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import Row

_SPANS: Final = 512  # of one request: the default of OpenTelemetry's batch processor
_REQUESTS: Final = 24  # of one round
_ROUNDS: Final = 7
_CONNECTIONS: Final = 6
_MARK: Final = b"trace id of 16 B"
# what opentelemetry-instrumentation-genai-openai 1.3b0 writes
_ATTRIBUTES: Final[dict[str, Any]] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.frequency_penalty": 0.1,
    "gen_ai.request.max_tokens": 64,
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.presence_penalty": 0.2,
    "gen_ai.request.seed": 7,
    "gen_ai.request.temperature": 0.3,
    "gen_ai.request.top_p": 0.9,
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.cache_read.input_tokens": 8,
    "gen_ai.usage.reasoning.output_tokens": 4,
    "openai.response.service_tier": "default",
    "openai.response.system_fingerprint": "fp_1",
    "server.address": "127.0.0.1",
    "server.port": 14318,
}


def _template() -> bytes:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    label = group.resource.attributes.add(key="service.name")
    label.value.string_value = "bench"
    scope = group.scope_spans.add()
    now = time.time_ns()
    rng = random.Random(7)
    for i in range(_SPANS):
        span = scope.spans.add(trace_id=_MARK, span_id=(i + 1).to_bytes(8, "big"), name="chat gpt-4o-mini", kind=3)
        span.start_time_unix_nano, span.end_time_unix_nano = now - 80_000_000, now
        own = {
            "gen_ai.response.id": f"chatcmpl-{_MARK.decode()}-{i}",
            "gen_ai.usage.input_tokens": rng.randrange(20, 4000),
            "gen_ai.usage.output_tokens": rng.randrange(2000),
        }
        for key, value in {**_ATTRIBUTES, **own}.items():
            _fill(span.attributes.add(key=key).value, value)
    packed: bytes = message.SerializeToString()
    return packed


def _fill(into: Any, value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _fill(into.array_value.values.add(), one)
    else:
        name = {int: "int_value", float: "double_value", str: "string_value"}[type(value)]
        setattr(into, name, value)


def _decode(body: bytes) -> int:
    count = 0
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                {pair.key: _plain(pair.value) for pair in span.attributes}
                count += 1
    return count


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


async def _post(port: int, bodies: Sequence[bytes], encoding: str) -> float:
    """
    Seconds until all requests are answered with 200.
    """
    left = list(bodies)
    head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n{encoding}Content-Length: "

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left:
            body = left.pop()
            writer.write(head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200") or b"Content-Length: 0\r\n" not in answer:
                raise RuntimeError((answer + await reader.read(1000)).decode(errors="replace"))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(_CONNECTIONS)))
    return time.perf_counter() - began


async def _serve(name: str, folder: Path, listener: socket.socket | None) -> None:
    import importlib

    from optimizer.config.loader import load
    from optimizer.service import Frame

    service = importlib.import_module(f"workers.{name}.service")
    config = load(env={}, overrides={"service.data_dir": str(folder), "service.runtime_dir": str(folder / "run")})
    frame: Frame[Any] = Frame(
        name=name,
        slot=f"{name}-0",
        config=config,
        settings=config.section(name),
        runtime_dir=folder / "run",
        secret=b"s" * 32,
        listeners={} if listener is None else {"otlp_http": listener},
    )
    frame.ready = lambda: print("ready", flush=True)
    gc.collect()
    gc.freeze()  # as the parent of the service does before it forks
    serving = asyncio.create_task(service.serve(frame))
    await asyncio.to_thread(sys.stdin.read)  # until the load is over
    frame.stopping.set()
    await serving


@contextmanager
def _running(name: str, folder: Path, listener: socket.socket | None = None) -> Iterator[None]:
    descriptors = () if listener is None else (listener.fileno(),)
    command = [sys.executable, "-m", "benchmarks.otlp", name, str(folder), *map(str, descriptors)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{name} did not start")
        yield


def main() -> list[Row]:
    """
    Measure, in some 20 seconds.
    """
    template = _template()
    floors: list[float] = []
    figures: dict[str, list[float]] = {"": [], "Content-Encoding: gzip\r\n": []}
    with (
        tempfile.TemporaryDirectory() as name,
        socket.create_server(("127.0.0.1", 0)) as listener,
        _running("storage", Path(name)),
        _running("collector", Path(name), listener),
    ):
        port: int = listener.getsockname()[1]
        asyncio.run(_post(port, [_fresh(template)], ""))  # the first call loads the price catalogue
        for _ in range(_ROUNDS):
            bodies = [_fresh(template) for _ in range(_REQUESTS)]
            began = time.perf_counter()
            count = sum(map(_decode, bodies))
            floors.append(count / (time.perf_counter() - began))
            figures[""].append(count / asyncio.run(_post(port, bodies, "")))
            packed = [gzip.compress(_fresh(template), 6) for _ in range(_REQUESTS)]
            encoding = "Content-Encoding: gzip\r\n"
            figures[encoding].append(count / asyncio.run(_post(port, packed, encoding)))
    plain, zipped = figures.values()
    return [_row("OTLP spans, durable", floors, plain, ">= 0.4"), _row("OTLP spans, gzip, durable", floors, zipped)]


def _fresh(template: bytes) -> bytes:
    return template.replace(_MARK, os.urandom(8).hex().encode())  # other trace and response ids


def _row(name: str, floors: list[float], figures: list[float], wanted: str = "") -> Row:
    ratio = statistics.median(figure / floor for figure, floor in zip(figures, floors, strict=True))
    return Row(name, "spans/s", statistics.median(floors), statistics.median(figures), ratio, wanted)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        bound = socket.socket(fileno=int(sys.argv[3])) if len(sys.argv) > 3 else None
        asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), bound))
    else:
        print(main())
