"""
Planned changes of a running daemon: reload, restart, stop; seen by its clients.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from faults.disks import fill, small_file_system
from system.conftest import launch  # noqa: F401 - a fixture
from system.daemon import BIN, Daemon, free_ports, task

from optimizer.pb.v1 import selection_pb2, selection_pb2_grpc

Launch = Callable[..., Daemon]

QUICK = '[service_manager]\nhealth_check_interval = "1s"\n'


def reload(daemon: Daemon, config: str, code: int = 0) -> dict[str, Any]:
    daemon.config.write_text(config)
    done = daemon.ctl("reload", "--output", "json")
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def how(answer: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    return {one["key"]: (one["how"], one["services"]) for one in answer["changes"]}


def test_each_field_touches_only_what_it_must(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    before = daemon.pids()
    assert how(reload(daemon, QUICK + '[observability]\nlog_level = "debug"\n')) == {
        "observability.log_level": ("live", [])
    }
    assert daemon.pids() == before
    with socket.create_connection(("127.0.0.1", daemon.metrics)) as garbage:
        garbage.sendall(b"no HTTP\r\n\r\n")
        daemon.wait(lambda: " DEBUG metrics-0" in daemon.log(), "heard in detail")

    answer = reload(daemon, QUICK + '[collector]\nkafka_topic = "other"\n')
    assert how(answer)["collector.kafka_topic"] == ("restart", ["collector"])
    after = daemon.pids()
    assert {name for name in after if after[name] != before[name]} == {"collector"}

    answer = reload(daemon, QUICK + f'[collector]\nkafka_topic = "other"\n[service]\ndata_dir = "{daemon.folder}/b"\n')
    assert answer["changes"] == []  # the environment overrides the file
    answer = reload(daemon, QUICK + '[collector]\nkafka_topic = "other"\n[service]\nname = "b"\n')
    assert answer["needs_daemon_restart"] == ["service.name"]
    assert daemon.pids() == after
    assert daemon.ctl("config", "get", "service.name").stdout == "llm-optimizer\n"
    assert daemon.healthy()


def test_a_file_with_a_mistake_changes_nothing_and_is_seen(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    before = daemon.pids()
    daemon.config.write_text(QUICK + '[rest_api]\nprot = 1\n[observability]\nlog_level = "loud"\n')
    done = daemon.ctl("reload")
    assert done.returncode == 1
    assert all(word in done.stderr for word in ("rest_api.prot", "observability.log_level"))
    daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr] # it runs
    rejected = re.compile(r'^config_reloads_total\{result="rejected"\} 2', re.M)
    daemon.wait(lambda: bool(rejected.search(daemon.get("/metrics", port=daemon.metrics)[1])), "counted")
    last = json.loads(daemon.ctl("status", "--output", "json").stdout)["reload"]
    assert last["result"] == "rejected"
    assert len(last["problems"]) == 2
    assert "config.rejected" in daemon.log()
    assert daemon.pids() == before


def test_a_port_moves_without_cutting_what_is_in_flight(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    del daemon.env["LLM_OPTIMIZER__REST_API__PORT"]
    assert daemon.stop() == 0
    daemon.config.write_text(QUICK + f"[rest_api]\nport = {daemon.rest}\n")
    daemon.start()
    old, new = daemon.rest, free_ports(1)[0]
    slow = http.client.HTTPConnection("127.0.0.1", old, timeout=20)
    body = json.dumps(task("moved", ["a", "b"])).encode()
    slow.putrequest("POST", "/api/v1/tasks")
    slow.putheader("Content-Type", "application/json")
    slow.putheader("Content-Length", str(len(body)))
    slow.endheaders(body[:10])
    daemon.wait(lambda: daemon.get("/health/live")[0] == 200, "answering beside it")

    answer = reload(daemon, QUICK + f"[rest_api]\nport = {new}\n")
    assert how(answer) == {"rest_api.port": ("restart", ["rest_api"])}
    assert daemon.get("/health/live", port=new)[0] == 200
    slow.send(body[10:])
    assert slow.getresponse().status == 201
    slow.close()

    def closed() -> bool:
        try:
            return daemon.get("/health/live", port=old)[0] == 0
        except urllib.error.URLError as error:
            return isinstance(error.reason, ConnectionRefusedError)

    daemon.wait(closed, "closed at the old port")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.config.write_text(QUICK + f"[rest_api]\nport = {taken.getsockname()[1]}\n")
        assert "cannot be bound" in daemon.ctl("reload").stderr
    assert daemon.get("/health/live", port=new)[0] == 200


def test_a_service_that_does_not_come_up_takes_the_change_back(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    assert daemon.call("POST", "/api/v1/tasks", task("kept", ["a"]))[0] == 201
    (daemon.folder / "file").write_text("no folder")
    answer = reload(daemon, QUICK + f'[storage]\nlmdb_path = "{daemon.folder}/file"\n', code=1)
    assert answer["result"] == "rolled_back"
    assert "storage" in answer["problems"][0]
    daemon.wait(daemon.healthy, "healthy again")
    assert daemon.get("/api/v1/tasks/kept")[0] == 200
    assert daemon.ctl("config", "get", "storage.lmdb_path").stdout == "\n"


def test_a_storm_of_hangups_is_survived(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    assert daemon.process is not None
    for i in range(50):
        daemon.config.write_text(QUICK + f'[collector]\nkafka_topic = "t{i}"\n')
        daemon.process.send_signal(signal.SIGHUP)
    daemon.wait(lambda: daemon.ctl("config", "get", "collector.kafka_topic").stdout == "t49\n", "at the last file")
    daemon.wait(daemon.healthy, "healthy")


def test_planned_restarts_refuse_nobody(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    assert daemon.call("POST", "/api/v1/tasks", task("t", ["a", "b"]))[0] == 201
    answers: list[int] = []
    failed: list[str] = []
    cut: list[grpc.StatusCode] = []
    called: list[bool] = []
    stop = threading.Event()

    def ask(path: str, body: Any, port: int) -> None:
        while not stop.is_set():
            try:
                answers.append(daemon.call("POST", path, body, port=port)[0])
            except OSError as error:
                failed.append(repr(error))

    feedback = {"task": "t", "variant": "a", "quality": 1.0}
    asking: list[tuple[str, Any, int]] = [
        ("/api/v1/tasks/t/select", {}, daemon.rest),
        ("/api/v1/feedback", feedback, daemon.rest),
        ("/v1/traces", {"resourceSpans": []}, daemon.otlp),
    ]

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{daemon.grpc}") as channel:
            selections = selection_pb2_grpc.SelectionServiceStub(channel)
            while not stop.is_set():
                try:
                    selections.Select(selection_pb2.SelectRequest(task="t"), timeout=10, wait_for_ready=True)
                    called.append(True)
                except grpc.RpcError as error:
                    cut.append(error.code())

    threads = [threading.Thread(target=call), *(threading.Thread(target=ask, args=one) for one in asking)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert daemon.ctl("restart", "rest_api").returncode == 0
            assert daemon.ctl("restart", "collector").returncode == 0
            assert daemon.ctl("restart", "grpc_api").returncode == 0
        reload(daemon, QUICK + "[rest_api]\ninstances = 3\n")
        assert len(daemon.services()["rest_api"]["slots"]) == 3
        reload(daemon, QUICK)
        assert len(daemon.services()["rest_api"]["slots"]) == 1
        assert daemon.ctl("restart", "all").returncode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (failed, set(answers) - {202}) == ([], {200})
    # gRPC's core cancels what a client sends before it has heard that the server goes away, and has no way not to
    assert len(cut) < len(called) / 10
    assert set(cut) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_switching_off_and_on(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    reload(daemon, QUICK + "[grpc_api]\nenabled = false\n")
    assert daemon.services()["grpc_api"]["state"] == "Disabled"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", daemon.grpc))
    reload(daemon, QUICK)
    assert daemon.services()["grpc_api"]["state"] == "Running"
    assert daemon.healthy()


def test_what_was_switched_on_is_switched_off_again_when_a_change_is_taken_back(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK + "[grpc_api]\nenabled = false\n")
    (daemon.folder / "file").write_text("no folder")
    answer = reload(daemon, QUICK + f'[storage]\nlmdb_path = "{daemon.folder}/file"\n', code=1)
    assert answer["result"] == "rolled_back"
    grpc_api = daemon.services()["grpc_api"]
    assert (grpc_api["state"], grpc_api["ports"]) == ("Disabled", {})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", daemon.grpc))
    daemon.wait(daemon.healthy, "healthy again")


def test_a_service_that_an_operator_has_stopped_stays_so_however_many_instances_it_gets(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    assert daemon.ctl("stop", "grpc_api").returncode == 0
    reload(daemon, QUICK + "[grpc_api]\ninstances = 2\n")
    slots = daemon.services()["grpc_api"]["slots"]
    assert {name: slot["state"] for name, slot in slots.items()} == {"grpc_api-0": "Stopped", "grpc_api-1": "Stopped"}
    assert daemon.ctl("start", "grpc_api").returncode == 0
    assert {slot["state"] for slot in daemon.services()["grpc_api"]["slots"].values()} == {"Running"}


def test_a_stop_is_kept_over_a_daemons_restart_only_if_asked(launch: Launch) -> None:  # noqa: F811 - the fixture
    daemon = launch(QUICK)
    assert daemon.ctl("stop", "integrations", "--keep").returncode == 0
    assert daemon.ctl("stop", "metrics").returncode == 0
    assert daemon.ctl("status").returncode == 0
    assert daemon.stop() == 0
    daemon.start()
    services = daemon.services()
    assert (services["integrations"]["state"], services["metrics"]["state"]) == ("Stopped", "Running")
    assert daemon.ctl("start", "integrations").returncode == 0
    assert daemon.ctl("shutdown").returncode == 0
    assert daemon.process is not None
    assert daemon.process.wait(20) == 0


def heard(notify: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in notify.recv(4096).decode().splitlines())


def test_the_service_manager_is_told(launch: Launch, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0llmo-{os.getpid()}-{tmp_path.name}")
        notify.settimeout(10)
        daemon = launch(
            "", env={"NOTIFY_SOCKET": notify.getsockname().decode().replace("\0", "@"), "WATCHDOG_USEC": "400000"}
        )
        while "READY" not in (found := heard(notify)):
            pass
        assert found["STATUS"] == "healthy"
        while "WATCHDOG" not in heard(notify):
            pass
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        while "RELOADING" not in (found := heard(notify)):
            pass
        assert int(found["MONOTONIC_USEC"]) > 0
        while "READY" not in heard(notify):
            pass
        daemon.process.send_signal(signal.SIGTERM)
        while "STOPPING" not in heard(notify):
            pass
        assert daemon.process.wait(20) == 0


def test_sockets_of_the_service_manager_are_used(launch: Launch, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    daemon = Daemon(tmp_path)
    with socket.socket() as rest:
        rest.bind(("127.0.0.1", 0))
        rest.listen()
        port = rest.getsockname()[1]
        told = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=rest_api.http"
        passing = f"exec 3<&{rest.fileno()}; export {told}; exec {BIN}/llm-optimizer"
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", passing], env=daemon.env, cwd=tmp_path, pass_fds=[rest.fileno()], stdout=log, stderr=log
            )
    try:
        daemon.wait(lambda: daemon.get("/health/ready", port=port)[0] == 200, "answering at the socket that was passed")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_full_disk_under_the_run_folder_stops_nobody(launch: Launch, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    with small_file_system(tmp_path, mebibytes=4) as folder:
        daemon = launch(QUICK, runtime_dir=folder / "run")
        fill(folder)
        pid = daemon.pids()["processor"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: daemon.pids().get("processor") not in (None, pid), "started again")
        assert daemon.call("POST", "/api/v1/tasks", task("t", ["a"]))[0] == 201
        assert daemon.call("POST", "/api/v1/tasks/t/select", {})[0] == 200
        (folder / "filler").unlink()
        daemon.wait(daemon.healthy, "healthy")
        assert daemon.stop() == 0
