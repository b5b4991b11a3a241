"""
The units: what systemd itself says of them, and what they promise of the product.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from systemd.conftest import ROOT, Analyze, with_targets
from systemd.sandbox import UNIT, settings

from optimizer.catalog import SERVICES, start_levels
from optimizer.config.loader import load
from optimizer.config.printer import default_toml
from optimizer.errors import EXIT_CONFIGURATION

SOCKETS = sorted((ROOT / "systemd").glob("*.socket"))
EXPOSURE_AT_MOST = 1.5


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """
    A root with the units and with something that can be started under the names they use.
    """
    with_targets(tmp_path)
    for unit in (UNIT, *SOCKETS):
        shutil.copy(unit, tmp_path / "lib" / "systemd" / "system")
    programs = tmp_path / "usr" / "local" / "bin"
    programs.mkdir(parents=True)
    for name in ("llm-optimizer", "optimizerctl"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    return tmp_path


def test_verify_finds_nothing(analyze: Analyze, tree: Path) -> None:
    done = analyze("verify", f"--root={tree}", UNIT.name, *(one.name for one in SOCKETS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_would_find_a_mistake(analyze: Analyze, tree: Path) -> None:
    installed = tree / "lib" / "systemd" / "system" / UNIT.name
    installed.write_text(installed.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    (tree / "usr" / "local" / "bin" / "optimizerctl").unlink()
    told = analyze("verify", f"--root={tree}", UNIT.name).stderr
    assert "mixd" in told
    assert "/usr/local/bin/optimizerctl is not executable" in told


def test_the_unit_is_hardened(analyze: Analyze) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_AT_MOST * 10:.0f}", UNIT)
    told = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert told is not None, done.stderr
    assert float(told[1]) <= EXPOSURE_AT_MOST
    assert done.returncode == 0


def seconds(key: str) -> float:
    return float(settings()[key][0])


def test_the_times_leave_room_for_those_of_the_configuration() -> None:
    manager = load(env={}).service_manager
    assert seconds("TimeoutStopSec") >= float(manager.shutdown_timeout) + 10
    assert seconds("TimeoutStartSec") >= float(manager.start_timeout) * len(start_levels(SERVICES)) + 10


def test_a_wrong_configuration_is_not_started_again() -> None:
    assert settings()["RestartPreventExitStatus"] == [str(EXIT_CONFIGURATION)]


def test_the_default_configuration_keeps_its_data_in_the_state_folder() -> None:
    assert settings()["WorkingDirectory"] == ["%S/llm-optimizer"]
    assert settings()["StateDirectory"] == ["llm-optimizer"]
    assert 'data_dir = "./data"' in default_toml()
    assert load(env={"RUNTIME_DIRECTORY": "/run/llm-optimizer"}).runtime_dir == Path("/run/llm-optimizer")


def test_the_user_of_the_unit_is_made() -> None:
    (made,) = re.findall(r"^u (\S+)", (ROOT / "systemd" / "llm-optimizer.sysusers").read_text(), re.MULTILINE)
    assert settings()["User"] == settings()["Group"] == [made]


def test_secrets_are_where_the_example_says() -> None:
    text = UNIT.read_text()
    assert re.search(r"^#LoadCredential=webhook:/", text, re.MULTILINE)
    assert f"file:/run/credentials/{UNIT.name}/webhook" in text


def test_each_socket_is_of_a_listener_that_can_adopt_it() -> None:
    config = load(env={})
    adoptable = {
        f"{service.name}.{listener.name}": getattr(config.section(listener.section), listener.field)
        for service in SERVICES
        for listener in service.listeners
        if listener.kind == "inherit"
    }
    found = {}
    for unit in SOCKETS:
        values = dict(re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text(), re.MULTILINE))
        assert values["Service"] == UNIT.name
        found[values["FileDescriptorName"]] = values["ListenStream"]
    assert found == {name: f"127.0.0.1:{port}" for name, port in adoptable.items()}
