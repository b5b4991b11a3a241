"""
`llm-optimizer` up to where the daemon begins, as a process of its own: what it prints where, and its exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from config.conftest import Written

from optimizer import __version__
from optimizer.config.printer import default_toml

REFERENCE = """
rest_api = {port = "eighty", prot = 1}
[service_manager]
restart_backoff_base = "soon"
[storage]
postgres_url = 5
[[integrations.webhooks]]
url = "nowhere"
[[tasks]]
task = "a"
policy = "thomson"
variants = [{name = "x", model = "m"}]
[[tasks]]
task = "b"
variants = [{name = "x", model = "m"}]
[[tasks]]
task = "b"
variants = [{name = "x", model = "m"}]
[colector]
x = 1
"""


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_OPTIMIZER", "PYTEST"))}
    program = [sys.executable, "-c", "from optimizer.cli import main; main(prog_name='llm-optimizer')"]
    return subprocess.run(
        [*program, *arguments], capture_output=True, text=True, env=clean | env, timeout=60, check=False
    )


def test_every_mistake_is_on_a_line_of_its_own(written: Written) -> None:
    found = run("--config", str(written(REFERENCE)), "--validate-config", LLM_OPTIMIZER__GRPC_API__PRT="1")
    assert (found.returncode, found.stdout) == (78, "")
    said = [line.partition(": ")[2].partition(": ") for line in found.stderr.splitlines()]
    where = {key: reason.partition(";")[0] for key, _, reason in said}
    assert where == {
        "grpc_api.prt": "is no known key (LLM_OPTIMIZER__GRPC_API__PRT)",
        "rest_api.port": 'is "eighty" (line 2)',
        "rest_api.prot": "is no known key (line 2)",
        "service_manager.restart_backoff_base": 'is "soon" (line 4)',
        "storage.postgres_url": "is a number (line 6)",
        "integrations.webhooks[0].name": "is missing (line 7)",
        "integrations.webhooks[0].url": "is text (line 8)",
        "tasks[0].policy": "is 'thomson' (line 11)",
        "tasks[2].task": "is 'b', as is tasks[1].task (line 17)",
        "colector": "is no section (line 19)",
    }


def test_a_daemon_with_a_wrong_configuration_does_not_start(written: Written) -> None:
    found = run("--config", str(written("[rest_api]\nport = -1\n")))
    assert found.returncode == 78
    assert "rest_api.port" in found.stderr


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    found = run("--config", str(tmp_path / name), "--validate-config")
    assert found.returncode == 78
    assert str(tmp_path / name) in found.stderr
    assert found.stderr.count("\n") == 1


def test_valid_is_said_on_standard_output_and_warnings_elsewhere(written: Written) -> None:
    found = run("--config", str(written("[storage]\nredis_url = 'redis://:hunter2@h'\n")), "--validate-config")
    assert (found.returncode, found.stdout) == (0, "valid\n")
    assert found.stderr.startswith("warning: storage.redis_url (line 2) has no effect: ")
    assert "hunter2" not in found.stderr


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}]
)
def test_the_default_is_printed_to_any_terminal(locale: dict[str, str]) -> None:
    found = run("--print-default-config", **locale)
    assert (found.returncode, found.stderr, found.stdout) == (0, "", default_toml())


def test_help_and_version() -> None:
    assert run("-V").stdout == f"llm-optimizer, version {__version__}\n"
    shown = run("-h").stdout
    for option in (
        "--config",
        "--log-level",
        "--json-logs",
        "--validate-config",
        "--print-default-config",
        "--version",
        "-h",
    ):
        assert option in shown
