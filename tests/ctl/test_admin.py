"""
Commands that talk to the parent, against a fake of its admin socket.
"""

from __future__ import annotations

import json
import socket
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
    admin(
        document(
            status,
            storage=service(),
            collector=service("Backoff", pid=None, message="crashed", restarts=2, next_retry_secs=2),
        )
    )
    found = ctl("status")
    assert found.exit_code == code
    head, titles, first, second = found.stdout.splitlines()
    assert head == f"{status}, up 1m01s"
    assert titles.split()[:4] == ["SERVICE", "STATE", "HEALTH", "PID"]
    assert first.split() == ["storage", "Running", "ok", "123", "1h02m", "0", "-", "-", "1.5%", "20M", "8080"]
    assert second.split() == [
        "collector",
        "Backoff",
        "ill",
        "-",
        "1h02m",
        "2",
        "-",
        "2.0s",
        "1.5%",
        "20M",
        "8080",
        "crashed",
    ]
    assert "\x1b" not in found.stdout


@pytest.mark.parametrize(
    "arguments", [["--output", "json", "status"], ["status", "--output", "json"], ["status", "--output=json"]]
)
def test_json_is_the_document_wherever_the_option_stands(admin: Start, ctl: Ctl, arguments: list[str]) -> None:
    admin(document("healthy", storage=service()))
    found = json.loads(ctl(*arguments).stdout)
    assert found == {"status": "healthy", "uptime_secs": 61, "services": {"storage": service()}}


@pytest.mark.parametrize(
    ("state", "fields", "code"),
    [("Running", {}, 0), ("Degraded", {}, 1), ("Failed", {}, 2), ("Stopped", {"wanted": False}, 0)],
)
def test_one_service_with_its_transitions_and_its_own_exit_code(
    admin: Start, ctl: Ctl, state: str, fields: dict[str, Any], code: int
) -> None:
    step = {"at": "t", "slot": "metrics-0", "from": "Starting", "to": state, "event": "ready", "reason": "because"}
    fake = admin(document("degraded", metrics=service(state, transitions=[step], **fields)))
    found = ctl("status", "metrics")
    assert (found.exit_code, fake.asked) == (code, [{"command": "status", "service": "metrics"}])
    assert found.stdout.splitlines()[-1].split() == ["t", "metrics-0", "Starting", state, "ready", "because"]
    assert list(yaml.safe_load(ctl("status", "metrics", "--output", "yaml").stdout)["services"]) == ["metrics"]


@pytest.mark.parametrize(("kind", "code"), [("not_found", 4), ("not_permitted", 5), ("transient", 1)])
def test_a_refusal_has_an_exit_code_of_its_kind(admin: Start, ctl: Ctl, kind: str, code: int) -> None:
    admin(lambda _: {"ok": False, "error": "a sentence", "kind": kind})
    found = ctl("stop", "storage")
    assert (found.exit_code, found.stderr) == (code, "optimizerctl: a sentence\n")


def test_a_plan_is_shown_field_by_field(admin: Start, ctl: Ctl) -> None:
    change = {"key": "rest_api.port", "before": "1", "after": "2", "how": "restart", "services": ["rest_api"]}
    fake = admin(lambda _: {"ok": True, "result": {"result": "dry_run", "changes": [change]}})
    found = ctl("reload", "--dry-run")
    assert (found.exit_code, fake.asked) == (0, [{"command": "reload", "dry_run": True}])
    assert found.stdout.splitlines()[1].split() == ["rest_api.port", "1", "2", "restart", "rest_api"]
    assert ctl("config", "diff").stdout == found.stdout


def test_a_reload_that_was_taken_back_fails(admin: Start, ctl: Ctl) -> None:
    result = {"result": "rolled_back", "changes": [], "problems": ["rest_api-0 is Backoff: startup"]}
    admin(lambda _: {"ok": True, "result": result})
    found = ctl("reload")
    assert found.exit_code == 1
    assert "rest_api-0 is Backoff: startup" in found.stdout


def test_settings_in_effect(admin: Start, ctl: Ctl) -> None:
    tree = {"rest_api": {"port": 8080}, "integrations": {"webhooks": [{"name": "a"}]}, "tasks": []}
    admin(lambda _: {"ok": True, "result": {"config": tree, "warnings": []}})
    assert ctl("config", "get", "rest_api.port").stdout == "8080\n"
    assert ctl("config", "get", "integrations.webhooks[0].name").stdout == "a\n"
    missed = ctl("config", "get", "rest_api.prot")
    assert (missed.exit_code, missed.stderr) == (
        1,
        "optimizerctl: there is no key rest_api.prot; did you mean rest_api.port?\n",
    )
    assert json.loads(ctl("config", "show", "--output", "json").stdout) == tree


def test_a_file_is_checked_without_a_daemon(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[rest_api]\nport = 1\n")
    assert ctl("config", "validate", str(file)).stdout == "valid\n"
    file.write_text("[rest_api]\nprot = 1\n[storage]\nlmdb_path = 3\n")
    found = ctl("config", "validate", str(file))
    assert found.exit_code == 78
    assert all(key in found.stderr for key in ("rest_api.prot", "storage.lmdb_path"))


def test_the_doctor_names_what_is_wrong_and_what_to_do(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tmp_path / "c.toml"
        config.write_text(
            f'[service]\ndata_dir = "{tmp_path}/file/data"\nruntime_dir = "{folder}"\n'
            f"[rest_api]\nport = {taken.getsockname()[1]}\n"
        )
        (tmp_path / "file").write_text("")
        found = CliRunner().invoke(main, ["--config", str(config), "--output", "json", "doctor"])
    by_check = {one["check"]: one for one in json.loads(found.stdout) if one["outcome"] != "ok"}
    assert found.exit_code == 1
    assert "rest_api.port" in by_check["ports"]["advice"]
    assert by_check["data_dir"]["outcome"] == "problem"
    assert "no daemon listens" in by_check["daemon"]["found"]


@pytest.mark.parametrize(
    "command", [["status"], ["restart", "all"], ["tasks", "list"], ["events", "export"], ["select", "t"]]
)
def test_no_daemon_is_said_with_exit_code_3(ctl: Ctl, folder: Path, command: list[str]) -> None:
    found = ctl(*command)
    assert (found.exit_code, found.stdout) == (3, "")
    assert found.stderr == f"optimizerctl: no daemon listens on {folder}/admin.sock\n"


def test_a_socket_that_was_not_named_is_said_to_be_looked_for(folder: Path) -> None:
    env = {"LLM_OPTIMIZER_SOCKET": None, "LLM_OPTIMIZER__SERVICE__RUNTIME_DIR": str(folder)}
    found = CliRunner().invoke(main, ["status"], env=env)
    assert found.exit_code == 3
    assert f"no daemon listens on {folder}/admin.sock (looked for by --socket, $LLM_OPTIMIZER_SOCKET" in found.stderr


def test_a_mistyped_command_gets_a_hint(ctl: Ctl) -> None:
    found = ctl("statsu")
    assert found.exit_code == 2
    assert "Did you mean status?" in found.stderr


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
    monkeypatch.setattr("optimizer.ctl.admin.SYSTEM", tmp_path / "none")
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


def test_the_socket_of_the_unit_is_found_where_there_is_none_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLM_OPTIMIZER_SOCKET", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optimizer.ctl.admin.SYSTEM", tmp_path / "system")
    assert find_socket(None, None) == Path("data/run/admin.sock")
    (tmp_path / "system").mkdir(mode=0o000)
    assert find_socket(None, None) == tmp_path / "system" / "admin.sock"
    (tmp_path / "data" / "run").mkdir(parents=True)
    (tmp_path / "data" / "run" / "admin.sock").touch()
    assert find_socket(None, None) == Path("data/run/admin.sock")


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
