"""
Requests and their answers: the client keeps a request until its answer or its deadline, the server answers every one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import zmq

from optimizer.bus.sockets import Sockets
from optimizer.bus.wire import FRAME_BYTES, Letter, letters, raised, read, told, write
from optimizer.errors import OptimizerError, Rejected, Transient
from optimizer.messages import Failure, Message
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log

Handler = Callable[[Message], Awaitable[Message]]

MAX_PENDING: Final = 4096  # requests of one client without an answer; more means the peer is far behind
_RETRY_S: Final = 0.01  # between attempts to send what could not be sent


class _Call(msgspec.Struct, eq=False):
    message: Message
    trace: bytes
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
        self._calls: dict[int, _Call] = {}  # by number, in its order, until the answer
        self._number = 0
        self._sent = 0  # all up to this number were sent over the present connection
        self._frame = bytearray()  # those after it, unless they wait for the peer
        self._connected = False
        self._waiting = False  # the peer is away, or its queue is full
        self._sending: asyncio.Handle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._pump = sockets.connect(zmq.DEALER, f"{peer}.rpc", self._on_answers, self._on_connection)

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
        write(self._frame, number, message, trace)
        deadline = self._loop.time() + timeout_s
        call = self._calls[number] = _Call(message, trace, self._loop.create_future(), timeout_s, deadline)
        self._expire_at(deadline)
        self._send_soon()
        try:
            answer = await call.future
        finally:
            del self._calls[number]
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

    # --- deadlines: one timer for all, set again for an earlier one, and for the next one when it fires ---

    def _expire_at(self, deadline: float) -> None:
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

    # --- sending ---

    def _send_soon(self) -> None:
        if self._waiting:
            self._frame = bytearray()  # it will be written again: there may be many until then
        elif len(self._calls) == 1 or len(self._frame) >= FRAME_BYTES:
            self._send(self._number)
        elif self._sending is None:  # others may come in this round
            self._sending = self._loop.call_soon(self._send_rest)

    def _send(self, last: int) -> None:
        frame, self._frame = self._frame, bytearray()
        if self._pump.send(b"", frame):
            self._sent = last
        else:
            self._wait()

    def _wait(self) -> None:
        self._waiting = True
        self._sending = self._loop.call_later(_RETRY_S, self._send_again)

    def _send_rest(self) -> None:
        self._sending = None
        if self._frame:
            self._send(self._number)

    def _send_again(self) -> None:
        self._waiting = False
        self._frame = bytearray()
        if not self._pump.writable():
            self._wait()
            return
        for number, call in self._calls.items():
            if number > self._sent:
                write(self._frame, number, call.message, call.trace)
                if len(self._frame) >= FRAME_BYTES:
                    self._send(number)
                if self._waiting:
                    return
        self._send_rest()

    def _on_connection(self, there: bool) -> None:
        if self._connected or not there:  # lost, and with it what was under way, even if its end was not reported
            self._sent = 0
        self._connected = there
        if there:
            if self._sending is not None:
                self._sending.cancel()
            self._send_again()

    # --- answers ---

    def _on_answers(self, address: bytes, data: memoryview) -> None:
        try:
            found = letters(data)
        except OptimizerError as error:
            log.warning("bus.garbage", sender=self._peer, error=str(error))
            return
        for letter in found:
            _, number, _, _ = letter
            call = self._calls.get(number)
            if call is None or call.future.done():
                continue
            try:
                call.future.set_result(read(letter, self._peer))
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
        self._sending = False
        self._frames: dict[bytes, bytearray] = {}  # answers of this round of the loop, by peer
        self._pump = sockets.bind(zmq.ROUTER, f"{name}.rpc", self._on_requests)

    async def close(self) -> None:
        """
        Give up what is in hand; what has been answered is sent.
        """
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._send()

    def _on_requests(self, peer: bytes, data: memoryview) -> None:
        try:
            found = letters(data)
        except OptimizerError as error:
            log.warning("bus.garbage", sender="a client", error=str(error))
            return
        for letter in found:
            self._begin(peer, letter)

    def _begin(self, peer: bytes, letter: Letter) -> None:
        _, number, trace, _ = letter
        if len(self._tasks) >= self._max_in_flight:
            sentence = f"{self._max_in_flight} requests in hand already"
            self._answer(peer, number, Failure(kind="rejected", message=sentence))
            return
        try:
            message = read(letter, "a client")
        except OptimizerError as error:
            self._answer(peer, number, told(error))
            return
        self._count += 1
        work = self._serve(self._count, peer, number, message, bytes(trace))
        self._tasks[self._count] = self._loop.create_task(work)

    async def _serve(self, count: int, peer: bytes, number: int, message: Message, trace: bytes) -> None:
        tracing.arrived(trace)
        try:
            answer = await self._handler(message)
        except OptimizerError as error:
            answer = told(error)
        except Exception as error:  # noqa: BLE001 - the top of this loop: one bad request must not end the others
            log.opt(exception=error).error("bus.handler_failed", error=repr(error))
            # not permanent: a defect here is no reason for the one who asks never to be started again
            answer = Failure(kind="transient", message=f"internal error: {type(error).__name__}")
        finally:
            del self._tasks[count]
        self._answer(peer, number, answer)

    def _answer(self, peer: bytes, number: int, answer: Message) -> None:
        frame = self._frames.setdefault(peer, bytearray())
        try:
            write(frame, number, answer)
        except OptimizerError as error:  # too large
            write(frame, number, told(error))
        if not self._tasks or len(frame) >= FRAME_BYTES:
            self._send()
        elif not self._sending:  # others may be ready in this round
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        frames, self._frames = self._frames, {}
        for peer, frame in frames.items():
            if not self._pump.send(peer, frame):
                log.warning("bus.answers_dropped", size_bytes=len(frame))  # the client asks again or gives up
