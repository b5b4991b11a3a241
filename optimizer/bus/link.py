"""
ZeroMQ over ipc between the services. The only file that imports zmq.

No broker: each service binds its own endpoints, `<identity>.rpc` (ROUTER) and `<identity>.pub` (PUB), in a folder of
mode 0700; others connect, and reconnect by themselves every 10 ms. The rules of the file:

- Raw sockets on the loop's descriptor. The descriptor is edge-triggered: after every event and every send the socket is
  asked again whether something can be read (`_Pump`). zmq.asyncio costs an order of magnitude of throughput.
- Nothing that matters is sent without an answer. A client keeps each request until its answer or its deadline, and sends it
  again when the peer has come back; so every request must be idempotent. IMMEDIATE keeps requests out of a queue to a peer
  that is away, where they would be lost with it.
- A publication may be lost. Its group is numbered, and a `Pulse` every second tells the last number, so a subscriber that
  missed something hears `on_join` and reads the state anew.
- Every queue is bounded; full is answered with `rejected`.
- A second bind to an ipc path would silently steal it, so the binder holds a lock on a file beside it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from optimizer.errors import Conflict, Invalid, NotFound, OptimizerError, Permanent, Problem, Rejected, Transient
from optimizer.messages import VERSION, Changed, Failure, Grown, Message, Pulse, decode_bus, encode
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log

Handler = Callable[[Message], Awaitable[Message]]

MAX_PENDING: Final = 4096  # requests of one client without an answer; more means the peer is far behind
MAX_MESSAGE_BYTES: Final = 80 * 1024 * 1024  # an OTLP body of the largest allowed size, decoded, still passes
_HIGH_WATER: Final = 10_000  # messages in a ZeroMQ queue
_PATH_BYTES: Final = 107  # sun_path of a unix socket, without the final zero
_BURST: Final = 200  # messages taken before other callbacks of the loop get their turn
_PULSE_S: Final = 1.0
_RECONNECT_MS: Final = 10
_TAG: Final = bytes([VERSION])


class _Pump:
    """
    One socket, read by the loop whenever it has something; without `on_frames` it only sends.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None] | None) -> None:
        self.socket = socket
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._descriptor = socket.fileno()
        self._again = False
        self._closed = False
        if on_frames is not None:
            self._loop.add_reader(self._descriptor, self._drain)
            self._wake()

    def send(self, frames: Sequence[bytes]) -> bool:
        """
        Hand frames to ZeroMQ; False when its queue is full or nobody is connected.
        """
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._wake()
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self.socket.close(0)

    def _wake(self) -> None:
        if self._on_frames is not None and not self._again and self.socket.get(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type] # EVENTS is an int
            self._again = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._again = False
        if self._on_frames is None:
            return
        for _ in range(_BURST):
            if self._closed:
                return
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_frames(frames)
        self._wake()


class _Call:
    __slots__ = ("expiry", "frames", "future", "sent")

    def __init__(self, frames: tuple[bytes, ...], future: asyncio.Future[Message], expiry: asyncio.TimerHandle) -> None:
        self.frames = frames
        self.future = future
        self.expiry = expiry
        self.sent = False


class Client:
    """
    Requests to one peer. Made by `Bus.client`.
    """

    def __init__(self, bus: Bus, peer: str) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._calls: dict[bytes, _Call] = {}
        self._number = 0
        self._retry: asyncio.TimerHandle | None = None
        self._pump = bus.connect(zmq.DEALER, f"{peer}.rpc", self._on_frames, self._on_connected)

    async def request(self, message: Message, timeout_s: float) -> Message:
        """
        Ask the peer, over its restarts, until it answers or `timeout_s` have passed.

        Raises:
            Transient: no answer in time. Rejected: the peer, or this client, has no room. Invalid, NotFound, Conflict,
                Permanent: as the peer raised it.
        """
        if len(self._calls) >= MAX_PENDING:
            raise Rejected(f"{self._peer}: {MAX_PENDING} requests wait for an answer already")
        self._number += 1
        key = self._number.to_bytes(8, "big")
        future: asyncio.Future[Message] = self._loop.create_future()
        expiry = self._loop.call_later(timeout_s, self._expire, future, type(message).__name__, timeout_s)
        frames: tuple[bytes, ...] = (key, _TAG + encode(message))
        if trace := tracing.carried():
            frames = (*frames, trace)
        call = self._calls[key] = _Call(frames, future, expiry)
        try:
            self._send(call)
            answer = await future
        finally:
            del self._calls[key]
            expiry.cancel()
        if isinstance(answer, Failure):
            raise _error(answer)
        return answer

    def _expire(self, future: asyncio.Future[Message], what: str, timeout_s: float) -> None:
        if not future.done():
            future.set_exception(Transient(f"{self._peer} did not answer {what} within {timeout_s:g} s"))

    def _send(self, call: _Call) -> None:
        call.sent = self._pump.send(call.frames)
        if not call.sent and self._retry is None:
            self._retry = self._loop.call_later(_RECONNECT_MS / 1000, self._send_unsent)

    def _send_unsent(self) -> None:
        self._retry = None
        for call in list(self._calls.values()):
            if not call.sent:
                self._send(call)
                if not call.sent:
                    return

    def _on_connected(self) -> None:
        for call in self._calls.values():
            call.sent = False
        self._send_unsent()

    def _on_frames(self, frames: list[bytes]) -> None:
        call = self._calls.get(frames[0])
        if call is not None and not call.future.done():
            try:
                call.future.set_result(_decode(frames[1], self._peer))
            except OptimizerError as error:
                call.future.set_exception(error)

    def close(self) -> None:
        """
        End all waiting requests as Transient.
        """
        if self._retry is not None:
            self._retry.cancel()
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(Transient(f"the connection to {self._peer} was closed"))


class _Server:
    def __init__(self, bus: Bus, handler: Handler, max_in_flight: int) -> None:
        self._handler = handler
        self._max_in_flight = max_in_flight
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump = bus.bind(zmq.ROUTER, "rpc", self._on_frames)

    def _on_frames(self, frames: list[bytes]) -> None:
        peer, key, data, *trace = frames
        if len(self._tasks) >= self._max_in_flight:
            self._answer(peer, key, Failure(kind="rejected", message=f"{self._max_in_flight} requests in hand already"))
            return
        task = asyncio.get_running_loop().create_task(self._serve(peer, key, data, *trace))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: bytes, key: bytes, data: bytes, trace: bytes = b"") -> None:
        tracing.arrived(trace)
        try:
            answer = await self._handler(_decode(data, "a client"))
        except OptimizerError as error:
            answer = _failure(error)
        except Exception as error:  # noqa: BLE001 - the top of this loop: one bad request must not end the others
            log.opt(exception=error).error("bus.handler_failed", error=repr(error))
            answer = Failure(kind="permanent", message=f"internal error: {type(error).__name__}")
        self._answer(peer, key, answer)

    def _answer(self, peer: bytes, key: bytes, answer: Message) -> None:
        try:
            if not self._pump.send((peer, key, _TAG + encode(answer))):
                log.warning("bus.answer_dropped", answer=type(answer).__name__)  # the client asks again or gives up
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.ENOTSOCK):
                raise
            log.debug("bus.client_gone", answer=type(answer).__name__)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Publisher:
    def __init__(self, bus: Bus) -> None:
        self._pump = bus.bind(zmq.PUB, "pub", None)
        self._numbers: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)

    def publish(self, group: str, topic: str, message: Changed | Grown) -> None:
        number = self._numbers[group] = self._numbers.get(group, 0) + 1
        self._pump.send((topic.encode(), _TAG + encode(msgspec.structs.replace(message, sequence=number))))

    def _pulse(self) -> None:
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)
        for group, number in self._numbers.items():
            self._pump.send((f"{group}/".encode(), _TAG + encode(Pulse(sequence=number))))

    def close(self) -> None:
        self._timer.cancel()


class _Subscription:
    def __init__(
        self,
        bus: Bus,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._on_message = on_message
        self._on_join = on_join
        self._numbers: dict[str, int] = {}
        self._pump = bus.connect(zmq.SUB, f"{peer}.pub", self._on_frames, self._on_connected)
        for topic in topics:
            self._pump.socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def _on_connected(self) -> None:
        self._numbers.clear()
        self._on_join()

    def _on_frames(self, frames: list[bytes]) -> None:
        topic = frames[0].decode()
        message = _decode(frames[1], self._peer)
        group = "/".join(topic.split("/", 2)[:2])
        last = self._numbers.get(group)
        if isinstance(message, Pulse):
            missed = last != message.sequence
            self._numbers[group] = message.sequence
        elif isinstance(message, Changed | Grown):
            missed = last is None or message.sequence != last + 1
            self._numbers[group] = message.sequence
            self._on_message(topic, message)
        else:
            raise Permanent(f"{self._peer} published {type(message).__name__}, which is no publication")
        if missed:
            self._on_join()


class Bus:
    """
    One process's place on the bus. An asynchronous context manager; made after the fork, in the process that uses it.

    Args:
        directory: folder of the sockets; made with mode 0700. May be longer than a socket path allows.
        identity: under which this process binds.
    """

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity
        self._pumps: list[_Pump] = []
        self._clients: dict[str, Client] = {}
        self._server: _Server | None = None
        self._publisher: _Publisher | None = None
        self._locks: list[int] = []
        self._folder = -1

    async def __aenter__(self) -> Bus:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.close()
        if self._publisher is not None:
            self._publisher.close()
        for client in self._clients.values():
            client.close()
        for pump in self._pumps:
            pump.close()
        self._context.destroy(0)
        for descriptor in (*self._locks, self._folder):
            os.close(descriptor)

    def client(self, peer: str) -> Client:
        """
        The one client of this process for a peer; it need not be there yet.
        """
        if peer not in self._clients:
            self._clients[peer] = Client(self, peer)
        return self._clients[peer]

    def serve(self, handler: Handler, max_in_flight: int = 1024) -> None:
        """
        Bind `<identity>.rpc` and answer requests; what the handler raises becomes a Failure.

        Raises:
            Permanent: another process has bound it.
        """
        self._server = _Server(self, handler, max_in_flight)

    def publish(self, group: str, topic: str, message: Changed | Grown) -> None:
        """
        Publish under a topic that begins with `<group>/` or is the group; `bind_publisher` comes first.
        """
        if self._publisher is None:
            raise RuntimeError(f"{self._identity} publishes, but has not bound its publisher")
        self._publisher.publish(group, topic, message)

    def bind_publisher(self) -> None:
        """
        Bind `<identity>.pub`, so that subscribers can join before there is anything to publish.

        Raises:
            Permanent: another process has bound it.
        """
        self._publisher = _Publisher(self)

    def subscribe(
        self,
        peer: str,
        topics: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_join: Callable[[], None],
    ) -> None:
        """
        Follow topics (prefixes). `on_join`: connected, or something was missed; read the state anew.
        """
        _Subscription(self, peer, topics, on_message, on_join)

    def bind(self, kind: int, suffix: str, on_frames: Callable[[list[bytes]], None] | None) -> _Pump:
        """
        A bound socket of ours.
        """
        name = f"{self._identity}.{suffix}"
        self._lock(name)
        socket = self._socket(kind)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(self._endpoint(name))
        return self._pumped(socket, on_frames)

    def connect(
        self, kind: int, name: str, on_frames: Callable[[list[bytes]], None], on_connected: Callable[[], None]
    ) -> _Pump:
        """
        A connected socket; `on_connected` is called at each connection, the first one included.
        """
        socket = self._socket(kind)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)

        def on_event(frames: list[bytes]) -> None:
            if parse_monitor_message(frames)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                on_connected()

        watching = self._pumped(monitor, on_event)
        pump = self._pumped(socket, on_frames)
        socket.connect(self._endpoint(name))
        watching._wake()
        return pump

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        return socket

    def _pumped(self, socket: Any, on_frames: Callable[[list[bytes]], None] | None) -> _Pump:
        pump = _Pump(socket, on_frames)
        self._pumps.append(pump)
        return pump

    def _endpoint(self, name: str) -> str:
        path = str(self._directory / name)
        if len(os.fsencode(path)) > _PATH_BYTES:  # the kernel follows the descriptor to the folder, however deep it is
            path = f"/proc/self/fd/{self._folder}/{name}"
        return f"ipc://{path}"

    def _lock(self, name: str) -> None:
        descriptor = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Permanent(f"{self._directory / name} is bound by another process") from error


def _decode(data: bytes, sender: str) -> Message:
    if data[:1] != _TAG:
        raise Permanent(f"{sender} speaks version {data[0] if data else 'none'} of the bus, this process {VERSION}")
    try:
        return decode_bus(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise Permanent(f"{sender} sent what is no bus message: {error}") from error


_KINDS: Final[dict[str, type[Invalid]]] = {"invalid": Invalid, "not_found": NotFound, "conflict": Conflict}


def _error(failure: Failure) -> OptimizerError:
    if failure.kind == "transient":
        return Transient(failure.message, failure.retry_after_s)
    if failure.kind == "rejected":
        return Rejected(failure.message, failure.retry_after_s)
    if failure.kind == "permanent":
        return Permanent(failure.message)
    return _KINDS[failure.kind]([Problem(*problem) for problem in failure.problems] or failure.message)


def _failure(error: OptimizerError) -> Failure:
    told = str(error)
    match error:
        case Rejected():
            return Failure(kind="rejected", message=told, retry_after_s=error.retry_after_s)
        case Transient():
            return Failure(kind="transient", message=told, retry_after_s=error.retry_after_s)
        case Conflict():
            return Failure(kind="conflict", message=told, problems=_told(error))
        case NotFound():
            return Failure(kind="not_found", message=told, problems=_told(error))
        case Invalid():
            return Failure(kind="invalid", message=told, problems=_told(error))
        case _:
            return Failure(kind="permanent", message=told)


def _told(error: Invalid) -> list[tuple[str, str, str]]:
    return [(problem.field, problem.reason, problem.expected) for problem in error.problems]
