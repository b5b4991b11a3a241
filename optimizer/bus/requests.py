"""
Requests and their answers: the client keeps a request until its answer or its deadline, the server answers every one.

What one round of the loop asks or answers travels together, as frames of one ZeroMQ message: a message wakes three threads on
its way, and under load that costs more than all the rest. A frame stays a request, or an answer, of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec
import zmq

from optimizer.bus.sockets import Sockets
from optimizer.bus.wire import head_of, message_of, pack, raised, told, trace_of
from optimizer.errors import OptimizerError, Rejected, Transient
from optimizer.messages import Failure, Message
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log

Handler = Callable[[Message], Awaitable[Message]]

MAX_PENDING: Final = 4096  # requests of one client without an answer; more means the peer is far behind
_RETRY_S: Final = 0.01  # between attempts to send what could not be sent
_BUNDLE_BYTES: Final = 128 * 1024  # in one message, about: the peer begins with one while the next is on its way
_BUNDLE_FRAMES: Final = 64


class _Call(msgspec.Struct, eq=False):
    message: Message
    trace: bytes
    frame: bytearray | None  # until it is sent; made again if it must be sent again
    future: asyncio.Future[Message]
    timeout_s: float
    deadline: float  # loop time


class Client:
    """
    Requests to one peer. Made by `Bus.client`.
    """

    def __init__(self, sockets: Sockets, peer: str) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}  # by number, until the answer
        self._unsent: dict[int, _Call] = {}  # those of them that are to be sent, or sent again
        self._number = 0
        self._sending: asyncio.Handle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._pump = sockets.connect(zmq.DEALER, f"{peer}.rpc", self._on_answer, self._on_connected)

    async def request(self, message: Message, timeout_s: float) -> Message:
        """
        Ask the peer, over its restarts, until it answers or `timeout_s` have passed.

        Raises:
            Transient: no answer in time, or the bus is closed. Rejected: the peer, or this client, has no room. Invalid,
                NotFound, Conflict, Permanent: as the peer raised it; Invalid also for a message that is too large.
        """
        if len(self._calls) >= MAX_PENDING:
            raise Rejected(f"{self._peer}: {MAX_PENDING} requests wait for an answer already")
        if self._pump.closed:
            raise self._closed()
        self._number = number = self._number + 1
        trace = tracing.carried()
        frame = pack(number, message, trace)
        deadline = self._loop.time() + timeout_s
        call = _Call(message, trace, frame, self._loop.create_future(), timeout_s, deadline)
        self._calls[number] = self._unsent[number] = call
        self._expire_at(deadline)
        if self._sending is None:
            self._sending = self._loop.call_soon(self._send)
        try:
            answer = await call.future
        finally:
            del self._calls[number]
            self._unsent.pop(number, None)
        if isinstance(answer, Failure):
            raise raised(answer)
        return answer

    def close(self) -> None:
        """
        End all waiting requests as Transient.
        """
        for handle in (self._sending, self._expiry):
            if handle is not None:
                handle.cancel()
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(self._closed())

    def _closed(self) -> Transient:
        return Transient(f"the connection to {self._peer} was closed")

    def _expire_at(self, deadline: float) -> None:
        # one timer for all: it is set again for an earlier deadline, and for the next one when it fires
        if self._expiry is not None:
            if self._expiry.when() <= deadline:
                return
            self._expiry.cancel()
        self._expiry = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._loop.time()
        for call in self._calls.values():
            if call.future.done():
                continue
            if call.deadline > now:
                self._expire_at(call.deadline)
                continue
            sentence = f"{self._peer} did not answer {type(call.message).__name__} within {call.timeout_s:g} s"
            call.future.set_exception(Transient(sentence))

    def _send(self) -> None:
        self._sending = None
        while self._unsent:
            bundle = _bundle(self._frames())
            if not self._pump.send(b"", bundle):
                self._sending = self._loop.call_later(_RETRY_S, self._send)
                return
            for number in tuple(islice(self._unsent, len(bundle))):
                self._unsent.pop(number).frame = None

    def _frames(self) -> Iterator[bytearray]:
        for number, call in self._unsent.items():
            if call.frame is None:
                call.frame = pack(number, call.message, call.trace)
            yield call.frame

    def _on_connected(self) -> None:
        self._unsent.update(self._calls)
        if self._sending is not None:
            self._sending.cancel()
        self._send()

    def _on_answer(self, address: bytes, data: memoryview) -> None:
        head = head_of(data)
        if head is None:
            log.warning("bus.garbage", peer=self._peer, size_bytes=len(data))
            return
        _, number, _ = head
        call = self._calls.get(number)
        if call is None or call.future.done():
            return
        try:
            call.future.set_result(message_of(head, data, self._peer))
        except OptimizerError as error:
            call.future.set_exception(error)


class Server:
    """
    Answers requests. Made by `Bus.serve`.
    """

    def __init__(self, sockets: Sockets, name: str, handler: Handler, max_in_flight: int) -> None:
        self._handler = handler
        self._max_in_flight = max_in_flight
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._answers: dict[bytes, list[bytearray]] = {}  # of this round of the loop, by peer
        self._pump = sockets.bind(zmq.ROUTER, f"{name}.rpc", self._on_request)

    async def close(self) -> None:
        """
        Give up what is in hand; what has been answered is sent.
        """
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._send()

    def _on_request(self, peer: bytes, data: memoryview) -> None:
        head = head_of(data)
        if head is None:
            log.warning("bus.garbage", peer="a client", size_bytes=len(data))
            return
        _, number, _ = head
        if len(self._tasks) >= self._max_in_flight:
            refusal = Failure(kind="rejected", message=f"{self._max_in_flight} requests in hand already")
            self._answer(peer, number, refusal)
            return
        try:
            message = message_of(head, data, "a client")
        except OptimizerError as error:
            self._answer(peer, number, told(error))
            return
        self._count += 1
        work = self._serve(self._count, peer, number, message, trace_of(head, data))
        self._tasks[self._count] = self._loop.create_task(work)

    async def _serve(self, count: int, peer: bytes, number: int, message: Message, trace: bytes) -> None:
        tracing.arrived(trace)
        try:
            answer = await self._handler(message)
        except OptimizerError as error:
            answer = told(error)
        except Exception as error:  # noqa: BLE001 - the top of this loop: one bad request must not end the others
            log.opt(exception=error).error("bus.handler_failed", error=repr(error))
            answer = Failure(kind="permanent", message=f"internal error: {type(error).__name__}")
        finally:
            del self._tasks[count]
        self._answer(peer, number, answer)

    def _answer(self, peer: bytes, number: int, answer: Message) -> None:
        try:
            data = pack(number, answer)
        except OptimizerError as error:  # too large
            data = pack(number, told(error))
        if not self._answers:
            self._loop.call_soon(self._send)
        self._answers.setdefault(peer, []).append(data)

    def _send(self) -> None:
        answers, self._answers = self._answers, {}
        for peer, frames in answers.items():
            waiting = iter(frames)
            while bundle := _bundle(waiting):
                if not self._pump.send(peer, bundle):
                    log.warning("bus.answers_dropped", count=len(bundle))  # the client asks again or gives up


def _bundle(frames: Iterable[bytearray]) -> list[bytearray]:
    # the first of the frames, as many as travel together
    bundle: list[bytearray] = []
    size = 0
    for frame in frames:
        bundle.append(frame)
        size += len(frame)
        if size >= _BUNDLE_BYTES or len(bundle) == _BUNDLE_FRAMES:
            break
    return bundle
