"""
`make install` into a DESTDIR, moved to where it says it belongs, and run from there; then `make uninstall`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.daemon import Daemon
from systemd.conftest import ROOT, Analyze, with_targets
from systemd.sandbox import UNIT
from systemd.test_units import EXPOSURE_AT_MOST, SOCKETS

PYTHON = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
OWN_SETTINGS = '[service]\nname = "mine"\n'

pytestmark = pytest.mark.skipif(
    os.environ.get("CI") != "true" and not os.environ.get("TEST_INSTALL"),
    reason="installing takes half a minute: CI does, and TEST_INSTALL=1",
)


class Installed:
    """
    A tree as `make install DESTDIR=` leaves it, for a PREFIX that can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.destdir, self.prefix = folder / "dest", folder / "usr" / "local"
        self.config = self.destdir / "etc" / "llm-optimizer" / "llm-optimizer.toml"
        self.units = self.destdir / "lib" / "systemd" / "system"

    def make(self, target: str) -> str:
        words = [f"DESTDIR={self.destdir}", f"PREFIX={self.prefix}", f"PYTHON={PYTHON}"]
        done = subprocess.run(["make", "-C", ROOT, target, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def staged(self) -> Path:
        return self.destdir / self.prefix.relative_to("/")

    def deliver(self) -> None:
        """
        What unpacking a package does: the files come to where they belong.
        """
        self.prefix.parent.mkdir(parents=True)
        shutil.move(self.staged, self.prefix)

    def take_back(self) -> None:
        shutil.move(self.prefix, self.staged)

    def run(self, *words: str, **more: str) -> str:
        path = f"{self.prefix / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            words, env={"PATH": path, **more}, capture_output=True, text=True, check=True, cwd="/"
        ).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    made = Installed(tmp_path_factory.mktemp("llmo"))
    made.config.parent.mkdir(parents=True)
    made.config.write_text(OWN_SETTINGS)
    said = made.make("install")
    assert "systemctl enable --now llm-optimizer" in said
    made.deliver()
    yield made
    made.take_back()
    made.make("uninstall")
    left = [path for path in made.destdir.rglob("*") if not path.is_dir()]
    assert sorted(left) == [made.config, made.config.with_name("llm-optimizer.toml.new")]


def test_the_programs_are_those_installed(installed: Installed) -> None:
    assert "llm-optimizer" in installed.run("llm-optimizer", "--version")
    assert "optimizerctl" in installed.run("optimizerctl", "--version")
    inside = installed.prefix / "lib" / "llm-optimizer"
    where = installed.run(str(inside / "bin" / "python"), "-c", "import optimizer, workers; print(optimizer.__file__)")
    assert where.startswith(str(inside))


def test_nothing_points_to_the_checkout_or_to_destdir(installed: Installed) -> None:
    found = subprocess.run(
        ["grep", "-rlF", "-e", str(ROOT), "-e", str(installed.destdir), installed.prefix],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""


def test_the_daemon_runs_from_there(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("system.daemon.BIN", installed.prefix / "bin")
    daemon = Daemon(tmp_path, OWN_SETTINGS).start()
    assert set(daemon.pids()) >= {"storage", "collector", "processor", "rest_api", "grpc_api", "metrics"}
    assert daemon.stop() == 0


def test_settings_that_are_there_stay(installed: Installed) -> None:
    assert installed.config.read_text() == OWN_SETTINGS
    fresh = installed.config.with_name("llm-optimizer.toml.new")
    assert fresh.read_text() == (ROOT / "etc" / "llm-optimizer.toml").read_text()


def test_systemd_likes_the_units(installed: Installed, analyze: Analyze, tmp_path: Path) -> None:
    shutil.copytree(installed.destdir, tmp_path, dirs_exist_ok=True)
    programs = tmp_path / installed.prefix.relative_to("/") / "bin"
    programs.mkdir(parents=True)
    for name in ("llm-optimizer", "optimizerctl"):
        (programs / name).write_bytes((installed.prefix / "bin" / name).read_bytes())
        (programs / name).chmod(0o755)
    with_targets(tmp_path)
    done = analyze("verify", f"--root={tmp_path}", UNIT.name, *(one.name for one in SOCKETS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    threshold = f"--threshold={EXPOSURE_AT_MOST * 10:.0f}"
    assert analyze("security", "--offline=true", threshold, installed.units / UNIT.name).returncode == 0
    assert f"ExecStart={installed.prefix}/bin/llm-optimizer " in (installed.units / UNIT.name).read_text()
    assert (installed.destdir / "usr" / "lib" / "sysusers.d" / "llm-optimizer.conf").exists()


COMPLETIONS = {
    "bash": ("bash-completion/completions/optimizerctl", "complete -o nosort -F"),
    "zsh": ("zsh/site-functions/_optimizerctl", "#compdef optimizerctl"),
    "fish": ("fish/vendor_completions.d/optimizerctl.fish", "complete --no-files --command optimizerctl"),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completions_are_where_shells_look(shell: str, installed: Installed) -> None:
    path, line = COMPLETIONS[shell]
    assert line in (installed.prefix / "share" / path).read_text()


COMPLETE = """
COMP_WORDS=(optimizerctl re); COMP_CWORD=1
_optimizerctl_completion optimizerctl re optimizerctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_completes(installed: Installed) -> None:
    script = f"source {installed.prefix / 'share' / COMPLETIONS['bash'][0]}; {COMPLETE}"
    found = installed.run("bash", "-c", script).split()
    assert {"reload", "restart"} <= set(found)
    assert all(word.startswith("re") for word in found)
