"""
`optimizerctl logs`: what the processes of the daemon have written into their rings, in the order of time. Reads files, so it also
tells why a daemon has died.
"""

from __future__ import annotations

import contextlib
import difflib
import heapq
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from optimizer.catalog import SERVICES
from optimizer.ctl.admin import NotRunning, Refused, ask
from optimizer.ctl.target import EXIT_NOT_RUNNING, Target, fail
from optimizer.telemetry.lines import LEVELS, rank, text_line

_SUFFIX: Final = ".log"
_OLDER: Final = ".log.1"
_PARENT: Final = "supervisor"
_EXIT_UNKNOWN: Final = 4
_EXIT_NOT_PERMITTED: Final = 5
_POLL_S: Final = 0.2
_STATUS_S: Final = 2.0  # for the daemon to say where its folder is; it may be stuck, and the logs say why

Line = dict[str, Any]


@click.command()
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until interrupted.")
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=50, show_default=True, help="The last so many.")
@click.option("--level", type=click.Choice(LEVELS), default="trace", help="Only lines of this level and above.")
@click.pass_obj
def command(target: Target, service: str | None, follow: bool, count: int, level: str) -> None:
    """
    Show log lines of SERVICE (a service, one instance of it such as rest_api-0, or supervisor), or of all.
    """
    folder = _folder(target)
    try:
        _check(folder, service)
        reader = Reader(folder, service, rank(level))
        _show(target, reader.last(count))
        while follow:
            time.sleep(_POLL_S)
            _show(target, reader.new())
    except PermissionError as error:
        fail(f"{error.filename} may be read by the daemon's user only", _EXIT_NOT_PERMITTED)
    except KeyboardInterrupt:
        sys.exit(0)


def _folder(target: Target) -> Path:
    runtime = target.socket.parent
    with contextlib.suppress(NotRunning, Refused, TimeoutError):  # it is beside its socket, unless somebody moved that
        runtime = Path(ask(target.socket, {"command": "status"}, _STATUS_S).get("runtime_dir", runtime))
    return runtime / "log"


def _check(folder: Path, service: str | None) -> None:
    slots = _slots(folder)
    if not slots:
        fail(f"there are no log lines in {folder}; no daemon has run with this folder", EXIT_NOT_RUNNING)
    known = sorted({_PARENT, *(one.name for one in SERVICES), *slots})
    if service is not None and service not in known:
        close = difflib.get_close_matches(service, known, 1, 0.5)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        fail(f"there is no service {service}{hint}", _EXIT_UNKNOWN)


def _slots(folder: Path) -> list[str]:
    try:
        return sorted(name.removesuffix(_SUFFIX) for name in os.listdir(folder) if name.endswith(_SUFFIX))  # noqa: PTH208 - names are wanted
    except (FileNotFoundError, NotADirectoryError):
        return []


class Reader:
    """
    Lines of the rings in a folder.

    Args:
        service: a service or a slot; None: all. `lowest`: rank of the lowest level that is shown.
    """

    def __init__(self, folder: Path, service: str | None, lowest: int) -> None:
        self._folder = folder
        self._service = service
        self._lowest = lowest
        self._rings: dict[str, _Ring] = {}

    def last(self, count: int) -> list[Line]:
        """
        The newest `count` lines, oldest first.
        """
        rings = [list(islice(self._wanted(reversed(ring.all())), count))[::-1] for ring in self._known()]
        return self._merged(rings)[-count:] if count else []

    def new(self) -> list[Line]:
        """
        What has come since the last call of either.
        """
        return self._merged([list(self._wanted(ring.new())) for ring in self._known()])

    def _known(self) -> Iterator[_Ring]:
        for slot in _slots(self._folder):
            if self._service in (None, slot, slot.rpartition("-")[0]):
                if slot not in self._rings:
                    self._rings[slot] = _Ring(self._folder, slot)
                yield self._rings[slot]

    def _wanted(self, lines: Iterable[bytes]) -> Iterator[Line]:
        found = (line for raw in lines if (line := _parsed(raw)) is not None)
        return (line for line in found if rank(line.get("level")) >= self._lowest)

    @staticmethod
    def _merged(rings: list[list[Line]]) -> list[Line]:
        # each ring is in its own order already, whatever was done to the clock meanwhile
        return list(heapq.merge(*rings, key=lambda line: str(line.get("time", ""))))


class _Ring:
    """
    The ring of one slot, read on from where it was left, over its rotations.
    """

    def __init__(self, folder: Path, slot: str) -> None:
        self._path = folder / f"{slot}{_SUFFIX}"
        self._older = folder / f"{slot}{_OLDER}"
        self._file = -1
        self._part = b""  # of a line that is not written to its end yet

    def all(self) -> list[bytes]:
        """
        Everything there is.
        """
        self._open()
        older = b""
        with contextlib.suppress(FileNotFoundError), self._older.open("rb") as file:
            if self._file < 0 or not os.path.sameopenfile(self._file, file.fileno()):  # else it was turned just now
                older = file.read()
        return older.split(b"\n")[:-1] + self.new()

    def new(self) -> list[bytes]:
        """
        What was appended since the last call.
        """
        if self._file < 0:
            self._open()
        found = self._part + self._read_on()
        if self._turned():
            found += self._read_on()  # what came between the two
            if found and not found.endswith(b"\n"):
                found += b"\n"
            self._open()
            found += self._read_on()
        *lines, self._part = found.split(b"\n")
        return lines

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        try:
            self._file = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return  # it is about to be made

    def _read_on(self) -> bytes:
        return _read(self._file) if self._file >= 0 else b""

    def _turned(self) -> bool:
        try:
            return self._file >= 0 and not os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False


def _read(file: int) -> bytes:
    pieces = []
    while piece := os.read(file, 1024 * 1024):
        pieces.append(piece)
    return b"".join(pieces)


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None  # torn: the disk was full, or the machine went down
    return line if isinstance(line, dict) else None


def _show(target: Target, lines: list[Line]) -> None:
    if not lines:
        return
    if target.output == "json":
        shown = [json.dumps(line, ensure_ascii=True) for line in lines]
    elif target.output == "yaml":
        import yaml

        shown = [yaml.safe_dump(line, sort_keys=False, explicit_start=True).rstrip("\n") for line in lines]
    else:
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        shown = [text_line(line, colours) for line in lines]
    text = "\n".join(shown) + "\n"
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()
