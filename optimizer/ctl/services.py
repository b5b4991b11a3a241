"""
Commands about the services, over the admin socket: `status`, `start`, `stop`, `restart`, `reload`, `shutdown`, `log-level`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click

from optimizer.ctl.target import EXIT_FAILED, Target, columns

EXIT_BY_STATUS: Final = {"healthy": 0, "degraded": 1, "unhealthy": 2}
_LEVELS: Final = ("trace", "debug", "info", "warn", "error")
_COLOURS: Final = {
    "Running": "green",
    "Degraded": "yellow",
    "Starting": "yellow",
    "Stopped": "bright_black",
    "Disabled": "bright_black",
    "Failed": "red",
    "Backoff": "red",
}
_HEAD: Final = [
    "SERVICE", "STATE", "HEALTH", "PID", "UPTIME", "RESTARTS", "LAST-EXIT", "NEXT-RETRY", "CPU", "MEM", "PORTS", "MESSAGE"
]  # fmt: skip
_MARGIN_S: Final = 5.0  # beyond the daemon's own time limit

_timeout: Callable[[Any], Any] = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 3600), default=60.0, help="Seconds to wait for the outcome."
)
_no_wait: Callable[[Any], Any] = click.option("--no-wait", is_flag=True, help="Do not wait for the outcome.")


@click.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second.")
@click.pass_obj
def status(target: Target, service: str | None, watch: bool) -> None:
    """
    How the services are; of SERVICE also its newest transitions.

    Exit code: 0 all that are wanted are healthy, 1 degraded, 2 unhealthy, 3 not running, 4 no such service. Of SERVICE alone:
    0 healthy or not wanted, 1 degraded, 2 not serving.
    """
    request: dict[str, Any] = {"command": "status"} | ({"service": service} if service is not None else {})
    while True:
        document = target.ask(request)
        if watch:
            click.clear()
        target.show(document, _status_table)
        if not watch:
            sys.exit(_exit_code(document, service))
        time.sleep(1)


def _exit_code(document: dict[str, Any], service: str | None) -> int:
    if service is None:
        return EXIT_BY_STATUS[document["status"]]
    one = document["services"][service]
    if one["healthy"] or not one["wanted"]:
        return 0
    return 1 if one["state"] in ("Running", "Degraded") else 2


def _status_table(document: dict[str, Any]) -> str:
    rows = [_HEAD, *(_row(name, one) for name, one in document["services"].items())]
    lines = [f"{document['status']}, up {_span(document['uptime_secs'])}", columns(rows)]
    reload = document.get("reload")
    if reload is not None and reload["result"] != "applied":
        lines.append(f"\nreload of {reload['at']} {reload['result']}: {'; '.join(reload['problems'])}")
    for one in document["services"].values():
        if len(slots := one.get("slots", {})) > 1:
            lines.append("")
            lines += [f"{name}: {slot['state']}, pid {slot['pid'] or '-'}" for name, slot in slots.items()]
        if transitions := one.get("transitions"):
            told = [[t["at"], t["slot"], t["from"], t["to"], t["event"], t["reason"]] for t in transitions]
            lines += ["", columns([["AT", "SLOT", "FROM", "TO", "EVENT", "REASON"], *told])]
    return "\n".join(lines)


def _row(name: str, one: dict[str, Any]) -> list[str]:
    retry = one["next_retry_secs"]
    return [
        name,
        click.style(one["state"], fg=_COLOURS.get(one["state"])),
        "ok" if one["healthy"] else "-" if not one.get("wanted", True) else click.style("ill", fg="red"),
        str(one["pid"] or "-"),
        _span(one["uptime_secs"]),
        str(one["restarts"]),
        one["last_exit"] or "-",
        "-" if retry is None else f"{retry:.1f}s",
        f"{one['cpu_percent']:.1f}%",
        f"{one['memory_bytes'] / 2**20:.0f}M",
        ",".join(str(port) for port in one["ports"].values()) or "-",
        one["message"] or "",
    ]


def _span(seconds: int) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, short = divmod(hours, 24)
    if days:
        return f"{days}d{short:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _act(target: Target, command: str, service: str, timeout_s: float, no_wait: bool, **more: Any) -> None:
    request = {"command": command, "service": service, "timeout_s": timeout_s, **more}
    if no_wait:
        request["no_wait"] = True
    result = target.ask(request, timeout_s * (8 if service == "all" else 1) + _MARGIN_S)
    target.show(result, lambda found: "\n".join(f"{name}: {state}" for name, state in found["services"].items()))


@click.command()
@click.argument("service")
@_timeout
@_no_wait
@click.pass_obj
def start(target: Target, service: str, timeout_s: float, no_wait: bool) -> None:
    """
    Start SERVICE, or all, after a stop or a failure.
    """
    _act(target, "start", service, timeout_s, no_wait)


@click.command()
@click.argument("service")
@_timeout
@_no_wait
@click.option("--keep", is_flag=True, help="It stays stopped when the daemon is started anew, until `start`.")
@click.pass_obj
def stop(target: Target, service: str, timeout_s: float, no_wait: bool, keep: bool) -> None:
    """
    Stop SERVICE, or all; it stays so, over reloads too.
    """
    _act(target, "stop", service, timeout_s, no_wait, **({"keep": True} if keep else {}))


@click.command()
@click.argument("service")
@_timeout
@_no_wait
@click.pass_obj
def restart(target: Target, service: str, timeout_s: float, no_wait: bool) -> None:
    """
    Restart SERVICE, or all by their needs; closes an open circuit.
    """
    _act(target, "restart", service, timeout_s, no_wait)


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is applied, or taken back.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 3600), default=120.0, help="Seconds to wait.")
@click.pass_obj
def reload(target: Target, dry_run: bool, wait: bool, timeout_s: float) -> None:
    """
    Apply the configuration file anew. A file with a mistake changes nothing.
    """
    request: dict[str, Any] = {"command": "reload"}
    if dry_run:
        request["dry_run"] = True
    elif not wait:
        request["no_wait"] = True
    result = target.ask(request, timeout_s)
    target.show(result, reload_table)
    if result["result"] == "rolled_back":
        sys.exit(EXIT_FAILED)


def reload_table(found: dict[str, Any]) -> str:
    lines = []
    if found["changes"]:
        rows = [
            [one["key"], one["before"], one["after"], one["how"], ", ".join(one["services"]) or "-"]
            for one in found["changes"]
        ]
        lines.append(columns([["KEY", "BEFORE", "AFTER", "HOW", "RESTARTS"], *rows]))
    else:
        lines.append("nothing has changed")
    if found.get("needs_daemon_restart"):
        lines.append(f"needs a restart of the daemon: {', '.join(found['needs_daemon_restart'])}")
    lines += found.get("problems", [])
    lines.append(
        {"dry_run": "nothing was done (--dry-run)", "rolled_back": "taken back"}.get(found["result"], found["result"])
    )
    return "\n".join(lines)


@click.command()
@click.pass_obj
def shutdown(target: Target) -> None:
    """
    Stop the daemon in order.
    """
    target.show(target.ask({"command": "shutdown"}), lambda _: "stopping")


@click.command("log-level")
@click.argument("level", type=click.Choice(_LEVELS))
@click.argument("service", required=False)
@click.pass_obj
def log_level(target: Target, level: str, service: str | None) -> None:
    """
    Log LEVEL and above from now on, in SERVICE or everywhere, until the next start or reload.
    """
    request = {"command": "log_level", "level": level, "service": service or "all"}
    target.show(target.ask(request), lambda found: f"{found['level']}: {', '.join(found['services'])}")


COMMANDS: Final = (status, start, stop, restart, reload, shutdown, log_level)
