"""
Commands that act over the bus, against a real daemon.
"""

from __future__ import annotations

import csv
import io
import json
import select
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from system.daemon import BIN, Daemon, task


def ask(daemon: Daemon, *arguments: str) -> Any:
    done = daemon.ctl(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fails(daemon: Daemon, *arguments: str, code: int = 1) -> str:
    done = daemon.ctl(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("optimizerctl: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def write(daemon: Daemon, name: str, text: str) -> str:
    (daemon.folder / name).write_text(text)
    return str(daemon.folder / name)


def test_tasks_are_declared_listed_selected_on_and_forgotten(daemon: Daemon) -> None:
    path = write(daemon, "task.json", json.dumps(task("mine", ["a", "b"])))
    assert ask(daemon, "tasks", "set", path)["created"] is True
    assert ask(daemon, "tasks", "set", path)["created"] is False
    assert "mine" in [one["task"] for one in ask(daemon, "tasks", "list")]
    assert "mine" in daemon.ctl("tasks", "list").stdout
    shown = ask(daemon, "tasks", "show", "mine")
    assert [variant["name"] for variant in shown["task"]["variants"]] == ["a", "b"]
    assert set(shown["stats"]["variants"]) == {"a", "b"}
    found = ask(daemon, "select", "mine", "--context", "chars=12", "--context", "lang=de", "--explain")
    assert found["variant"] in ("a", "b")
    assert found["explanation"]["policy"] == "thompson"
    status, _ = daemon.call("POST", "/api/v1/feedback", {"selection_id": found["selection_id"], "quality": 1})
    assert status in (200, 202)  # its ticket is good at the door of the daemon
    assert daemon.ctl("tasks", "delete", "mine").returncode == 0
    assert 'there is no task "mine"' in fails(daemon, "select", "mine")
    assert 'there is no task "mine"' in fails(daemon, "tasks", "delete", "mine")


def test_wrong_input_is_one_sentence(daemon: Daemon) -> None:
    assert "variants" in fails(daemon, "tasks", "set", write(daemon, "bad.json", '{"task": "x", "variants": []}'))
    assert "is no JSON" in fails(daemon, "tasks", "set", write(daemon, "worse.json", "{"))
    assert "expected NAME=VALUE" in fails(daemon, "select", "x", "--context", "chars")
    assert "--since soon" in fails(daemon, "events", "export", "--since", "soon")
    told = fails(
        daemon, "events", "import", write(daemon, "e.jsonl", '\n{"task": "t", "variant": "a", "quality": 7}\n')
    )
    assert "e.jsonl, line 2, quality: is 7" in told
    assert "line 1 is no JSON" in fails(daemon, "events", "import", write(daemon, "f.jsonl", "nonsense\n"))


def test_events_are_imported_once_and_exported_as_stored(daemon: Daemon) -> None:
    rows = [
        {"id": f"e{i}", "time": f"2026-01-0{1 + i % 2}T00:00:00Z", "task": "moved", "variant": "a", "cost_usd": i / 1e3}
        for i in range(1200)
    ]
    path = write(daemon, "events.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert ask(daemon, "events", "import", path) == {"stored": 1200, "known": 0}
    assert ask(daemon, "events", "import", path) == {"stored": 0, "known": 1200}
    exported = daemon.ctl("events", "export", "--task", "moved").stdout
    assert [json.loads(line)["id"] for line in exported.splitlines()] == [row["id"] for row in rows]
    late = daemon.ctl("events", "export", "--task", "moved", "--since", "2026-01-02T00:00:00Z").stdout
    assert len(late.splitlines()) == 600
    text = daemon.ctl("events", "export", "--task", "moved", "--format", "csv").stdout
    first = next(csv.DictReader(io.StringIO(text)))
    assert (first["id"], first["variant"], first["cost_usd"]) == ("e0", "a", "0.0")
    again = write(daemon, "events.csv", text)
    assert ask(daemon, "events", "import", again, "--format", "csv", "--task", "moved") == {"stored": 0, "known": 1200}


def test_a_reader_that_has_seen_enough_is_no_error(daemon: Daemon) -> None:
    ctl, admin = shlex.quote(f"{BIN}/optimizerctl"), shlex.quote(f"{daemon.folder}/run/admin.sock")
    command = f"{ctl} --socket {admin} events export | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) <= 1


def test_tail_follows(daemon: Daemon) -> None:
    command = [f"{BIN}/optimizerctl", "--socket", f"{daemon.folder}/run/admin.sock", "events", "tail", "-n", "0"]
    with subprocess.Popen([*command, "--task", "tailed"], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            for i in range(100):  # until it has begun to follow, events pass by
                daemon.call(
                    "POST", "/api/v1/feedback", {"id": f"tail{i}", "task": "tailed", "variant": "a", "quality": 1}
                )
                if daemon_has_line(tail.stdout):
                    break
            line = json.loads(tail.stdout.readline())
        finally:
            tail.terminate()
    assert line["id"].startswith("tail")


def daemon_has_line(stream: Any) -> bool:
    return bool(select.select([stream], [], [], 0.2)[0])


@pytest.mark.parametrize("where", [[], ["--offline"]])
def test_replay_compares_the_policy_with_the_references(daemon: Daemon, where: list[str]) -> None:
    rows = [
        {
            "prompt": "why? " * (1 + i % 9),
            "arms": {"a": {"reward": 0.2, "cost": 1e-4}, "b": {"reward": 0.9, "cost": 1e-3}},
        }
        for i in range(60)
    ]
    path = write(daemon, "table.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = ask(daemon, "replay", path, "--ceiling", "1e-2", "--price", "a=0.1,0.1", *where)
    assert (found["table"], found["requests"], found["seeds"], found["max_cost_per_request_usd"]) == (
        "table",
        60,
        1,
        0.01,
    )
    assert found["policies"][0]["name"] == "best_fixed"
    assert found["policies"][0]["mean_quality"] == pytest.approx(0.9)
    assert 0.55 < found["daemon"]["mean_quality"] <= 0.9
    assert sum(found["daemon"]["share"].values()) == pytest.approx(1)
    assert not [one for one in ask(daemon, "tasks", "list") if one["task"].startswith("replay")]


def test_replay_refuses_what_it_cannot_use(daemon: Daemon) -> None:
    path = write(daemon, "one.csv", "a:quality\n1\n")
    assert "there is no variant z; there are a" in fails(daemon, "replay", path, "--offline", "--price", "z=1,1")
    assert "expected VARIANT=IN,OUT" in fails(daemon, "replay", path, "--offline", "--price", "a=1")
    assert "variants that one has not: b" in fails(
        daemon, "replay", path, "--offline", "--train", write(daemon, "two.csv", "b:quality\n1\n")
    )
    assert "cannot be read" in fails(daemon, "replay", "/nonexistent", "--offline")


def test_restart_and_status_of_the_real_parent(daemon: Daemon) -> None:
    before = daemon.pids()["metrics"]
    assert daemon.ctl("restart", "metrics").returncode == 0
    assert daemon.pids()["metrics"] != before
    assert daemon.ctl("status").returncode == 0
    assert "there is no service metric; did you mean metrics?" in fails(daemon, "restart", "metric", code=4)
    assert daemon.ctl("stop", "integrations").returncode == 0
    assert daemon.services()["integrations"]["state"] == "Stopped"
    assert daemon.ctl("status").returncode == 0
    assert daemon.ctl("start", "integrations").returncode == 0
    assert daemon.services()["integrations"]["state"] == "Running"
    assert daemon.ctl("doctor").returncode == 0


def test_status_is_as_its_schema_says(daemon: Daemon) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "status.schema.json").read_text())
    for arguments in (["status"], ["status", "storage"]):
        document = json.loads(daemon.ctl("--output", "json", *arguments).stdout)
        jsonschema.validate(document, schema)
    assert len(document["services"]["storage"]["transitions"]) >= 3


def test_without_the_key_it_says_so(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    key = daemon.folder / "data" / "selection.key"
    hidden = key.rename(key.with_suffix(".hidden"))
    try:
        assert "selection.key: No such file or directory" in fails(daemon, "tasks", "list")
    finally:
        hidden.rename(key)
