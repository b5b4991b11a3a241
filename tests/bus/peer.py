"""
A process on the bus, for tests that kill it: `python peer.py FOLDER answer|hold|publish`. It binds as `server`, prints a line for
everything that happens, and reads lines for what it is to do.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from optimizer.bus.link import Bus
from optimizer.messages import Changed, Message, StorageReport


def say(line: str) -> None:
    """
    Tell the test.
    """
    print(line, flush=True)


async def answer(message: Message) -> Message:
    """
    This process's number.
    """
    say(f"asked {type(message).__name__}")
    return StorageReport(journal_offset=os.getpid(), system_offset=0, revision=0, used_bytes=0, map_bytes=0)


async def hold(message: Message) -> Message:
    """
    Nothing, for ever.
    """
    say("holds")
    await asyncio.Event().wait()
    return message


async def main(folder: Path, role: str) -> None:
    """
    Play a role until killed.
    """
    async with Bus(folder, "server") as bus:
        if role == "publish":
            bus.bind_publisher()
        else:
            bus.serve(answer if role == "answer" else hold)
        say("ready")
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async for line in lines:
            key = line.decode().strip()
            bus.publish("state/task", f"state/task/{key}", Changed(sequence=0, key=f"task/{key}", revision=1, body=b""))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
