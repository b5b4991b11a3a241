"""
The real daemon, as its users start it: the console script, on free ports, in a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
DEADLINE_S = 30.0


def free_ports(count: int) -> list[int]:
    """
    Ports that were free a moment ago.
    """
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Daemon:
    """
    One running daemon; `config` is appended to what tests always want.
    """

    def __init__(
        self, folder: Path, config: str = "", env: dict[str, str] | None = None, runtime_dir: Path | None = None
    ) -> None:
        self.folder, self.runtime_dir = folder, runtime_dir or folder / "run"
        self.rest, self.grpc, self.metrics, self.otlp = free_ports(4)
        self.config = folder / "config.toml"
        self.config.write_text(config)
        prefix = "LLM_OPTIMIZER__"
        self.env = {
            **os.environ,
            prefix + "SERVICE__DATA_DIR": str(folder / "data"),
            prefix + "SERVICE__RUNTIME_DIR": str(self.runtime_dir),
            prefix + "REST_API__PORT": str(self.rest),
            prefix + "GRPC_API__PORT": str(self.grpc),
            prefix + "OBSERVABILITY__METRICS_PORT": str(self.metrics),
            prefix + "COLLECTOR__OTLP_HTTP_PORT": str(self.otlp),
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "llm-optimizer", "--config", self.config], env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        self.wait(lambda: self.get("/health/ready")[0] == 200, "ready")
        return self

    def wait(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            with contextlib.suppress(OSError, KeyError):
                if condition():
                    return
            if self.process is not None and self.process.poll() is not None and what == "ready":
                break
            time.sleep(0.01)
        raise AssertionError(f"not {what} within {deadline_s} s; the log ends:\n{self.log()[-3000:]}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def call(self, method: str, path: str, body: Any = None, port: int | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.rest}{path}",
            data=data,
            method=method,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310 - as above
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode(errors="replace")

    def get(self, path: str, port: int | None = None) -> tuple[int, Any]:
        return self.call("GET", path, port=port)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "optimizerctl", "--socket", self.runtime_dir / "admin.sock", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def services(self) -> dict[str, Any]:
        services: dict[str, Any] = json.loads(self.ctl("--output", "json", "status").stdout)["services"]
        return services

    def pids(self) -> dict[str, int]:
        return {name: service["pid"] for name, service in self.services().items() if service.get("pid")}

    def healthy(self) -> bool:
        status, body = self.get("/health")
        return status == 200 and body["status"] == "healthy"

    def exported(self) -> list[dict[str, Any]]:
        done = self.ctl("events", "export", "--format", "jsonl")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def alive(self) -> list[int]:
        """
        Every process that was started for this folder and still runs.
        """
        mark = str(self.runtime_dir).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    running = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                    if running and mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found


def task(name: str, variants: list[str], **fields: Any) -> dict[str, Any]:
    """
    A task as in the contract's example.
    """
    return {
        "task": name,
        "service": "shop",
        "policy": "thompson",
        "objective": {"quality": 1.0, "cost": 0.0, "latency": 0.0, "max_cost_per_request_usd": None},
        "variants": [{"name": variant, "provider": "openai", "model": variant} for variant in variants],
        **fields,
    }
