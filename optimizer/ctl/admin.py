"""
The client of the admin socket. Standard library only: `status` must come up fast.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

NAME = "admin.sock"
SYSTEM = Path("/run/llm-optimizer")  # RuntimeDirectory= of the unit, there while it runs


class NotRunning(Exception):
    """
    Nobody listens on the socket.
    """


class Refused(Exception):
    """
    The daemon's answer is an error; the message is its sentence, `kind` its branch of the tree of errors.
    """

    def __init__(self, sentence: str, kind: str = "failed") -> None:
        super().__init__(sentence)
        self.kind = kind


def find_socket(given: Path | None, config: Path | None) -> Path:
    """
    The socket: as given, of LLM_OPTIMIZER_SOCKET, of the configuration (file and environment), of the defaults.
    """
    if given is not None:
        return given
    if named := os.environ.get("LLM_OPTIMIZER_SOCKET"):
        return Path(named)
    if config is not None:
        from optimizer.config.loader import load

        return load(config).runtime_dir / NAME
    prefix = "LLM_OPTIMIZER__SERVICE__"
    if runtime := os.environ.get(prefix + "RUNTIME_DIR") or os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(runtime) / NAME
    if (runtime := os.environ.get("XDG_RUNTIME_DIR", "")) and (Path(runtime) / "llm-optimizer" / NAME).exists():
        return Path(runtime) / "llm-optimizer" / NAME
    if data := os.environ.get(prefix + "DATA_DIR"):
        return Path(data) / "run" / NAME
    own = Path("./data/run") / NAME
    return SYSTEM / NAME if SYSTEM.is_dir() and not os.path.exists(own) else own  # noqa: PTH110 - never raises


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> Any:
    """
    The result of one command.

    Raises:
        NotRunning, Refused: see there. TimeoutError: no answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_s)
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                link.connect(f"/proc/self/fd/{folder}/{path.name}")  # the path itself may be too long for a socket
            finally:
                os.close(folder)
            link.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_line(link))
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            raise NotRunning(f"no daemon listens on {path}") from error
        except PermissionError as error:
            raise Refused(
                f"{path} may be opened by root, the daemon's user and members of its group only", "not_permitted"
            ) from error
    if not answer["ok"]:
        raise Refused(answer["error"], answer.get("kind", "failed"))
    return answer["result"]


def _line(link: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = link.recv(65536)
        if not more:
            raise ConnectionResetError("the daemon closed the connection")
        found += more
    return found
