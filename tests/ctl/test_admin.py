"""
Commands that talk to the parent, against a fake of its admin socket.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from ctl.conftest import Admin, Answer, service

from optimizer.ctl import main
from optimizer.ctl.admin import find_socket

Ctl = Callable[..., Result]
Start = Callable[[Answer], Admin]


def document(status: str, **services: dict[str, Any]) -> Answer:
    return lambda _: {"ok": True, "result": {"status": status, "uptime_secs": 61, "services": services}}


@pytest.mark.parametrize(("status", "code"), [("healthy", 0), ("degraded", 1), ("unhealthy", 2)])
def test_status_shows_the_services_and_exits_by_health(admin: Start, ctl: Ctl, status: str, code: int) -> None:
    admin(document(status, storage=service(), collector=service("Backoff", pid=None, message="crashed", restarts=2)))
    found = ctl("status")
    assert found.exit_code == code
    head, titles, first, second = found.stdout.splitlines()
    assert head == f"{status}, up 1m01s"
    assert titles.split()[:4] == ["SERVICE", "STATE", "PID", "UPTIME"]
    assert first.split() == ["storage", "Running", "123", "1h02m", "0", "1.5", "20M", "8080", "-"]
    assert second.split() == ["collector", "Backoff", "-", "1h02m", "2", "1.5", "20M", "8080", "-", "crashed"]
    assert "\x1b" not in found.stdout


@pytest.mark.parametrize(
    "arguments", [["--output", "json", "status"], ["status", "--output", "json"], ["status", "--output=json"]]
)
def test_json_is_the_document_wherever_the_option_stands(admin: Start, ctl: Ctl, arguments: list[str]) -> None:
    admin(document("healthy", storage=service()))
    found = json.loads(ctl(*arguments).stdout)
    assert found == {"status": "healthy", "uptime_secs": 61, "services": {"storage": service()}}


def test_yaml_and_one_service(admin: Start, ctl: Ctl) -> None:
    admin(document("degraded", storage=service(), metrics=service()))
    found = ctl("status", "metrics", "--output", "yaml")
    assert (found.exit_code, list(yaml.safe_load(found.stdout)["services"])) == (1, ["metrics"])
    found = ctl("status", "metric")
    assert found.exit_code == 4
    assert "there is no service metric; there are storage, metrics" in found.stderr


@pytest.mark.parametrize(
    "command", [["status"], ["restart", "all"], ["tasks", "list"], ["events", "export"], ["select", "t"]]
)
def test_no_daemon_is_said_with_exit_code_3(ctl: Ctl, folder: Path, command: list[str]) -> None:
    found = ctl(*command)
    assert (found.exit_code, found.stdout) == (3, "")
    assert found.stderr == f"optimizerctl: no daemon listens on {folder}/admin.sock\n"


def test_restart_waits_for_the_outcome_and_tells_it(admin: Start, ctl: Ctl) -> None:
    fake = admin(lambda _: {"ok": True, "result": {"services": {"storage": "Running"}}})
    found = ctl("restart", "storage", "--timeout", "7")
    assert (found.exit_code, found.stdout) == (0, "storage: Running\n")
    assert fake.asked == [{"command": "restart", "service": "storage", "timeout_s": 7.0}]


def test_a_refusal_is_one_sentence(admin: Start, ctl: Ctl) -> None:
    admin(lambda _: {"ok": False, "error": "storage was not ready within 7 s"})
    found = ctl("restart", "storage")
    assert (found.exit_code, found.stderr) == (1, "optimizerctl: storage was not ready within 7 s\n")


def test_a_daemon_that_dies_while_asked_is_not_running(admin: Start, ctl: Ctl) -> None:
    admin(lambda _: None)
    assert ctl("status").exit_code == 3


def test_where_the_socket_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LLM_OPTIMIZER_SOCKET", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert find_socket(None, None) == Path("data/run/admin.sock")
    monkeypatch.setenv("LLM_OPTIMIZER__SERVICE__DATA_DIR", "/d")
    assert find_socket(None, None) == Path("/d/run/admin.sock")
    monkeypatch.setenv("LLM_OPTIMIZER__SERVICE__RUNTIME_DIR", "/r")
    assert find_socket(None, None) == Path("/r/admin.sock")
    config = tmp_path / "c.toml"
    config.write_text('[service]\nruntime_dir = "/c"\n')
    monkeypatch.delenv("LLM_OPTIMIZER__SERVICE__RUNTIME_DIR")
    assert find_socket(None, config) == Path("/c/admin.sock")
    monkeypatch.setenv("LLM_OPTIMIZER_SOCKET", "/s/x.sock")
    assert find_socket(None, None) == Path("/s/x.sock")
    assert find_socket(Path("/o"), config) == Path("/o")


def test_a_wrong_configuration_is_told(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[rest_api]\nprot = 1\n")
    found = CliRunner().invoke(main, ["--config", str(config), "status"], env={"LLM_OPTIMIZER_SOCKET": ""})
    assert found.exit_code == 1
    assert "rest_api.prot" in found.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl: Ctl, shell: str) -> None:
    found = ctl("completion", shell)
    assert found.exit_code == 0
    assert "_OPTIMIZERCTL_COMPLETE" in found.stdout


def test_completion_knows_the_commands() -> None:
    env = {"_OPTIMIZERCTL_COMPLETE": "bash_complete", "COMP_WORDS": "optimizerctl events ", "COMP_CWORD": "2"}
    code = "from optimizer.ctl import main; main(prog_name='optimizerctl')"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert {"plain,tail", "plain,export", "plain,import"} <= set(found.stdout.split())


def test_status_imports_next_to_nothing() -> None:
    code = (
        "import sys, optimizer.ctl\n"
        "print([m for m in ('numpy', 'zmq', 'msgspec', 'yaml', 'asyncio', 'loguru', 'tomllib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
