"""
`optimizerctl`: ask and tell a running daemon. Each command imports what it needs; `status` needs next to nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from optimizer import __version__
from optimizer.ctl.admin import NotRunning, Refused, ask, find_socket
from optimizer.errors import OptimizerError

EXIT_BY_STATUS = {"healthy": 0, "degraded": 1, "unhealthy": 2}
EXIT_NOT_RUNNING = 3
EXIT_FAILED = 1
_ANYWHERE = ("--socket", "--output")
_COLOURS = {"Running": "green", "Degraded": "yellow", "Disabled": "bright_black", "Failed": "red", "Backoff": "red"}


@dataclass(frozen=True)
class Target:
    """
    Which daemon, and how to show what it says: table, json or yaml.
    """

    socket: Path
    output: str

    def ask(self, request: dict[str, Any], timeout_s: float = 10.0) -> Any:
        """
        The result of an admin command; ends the program with a sentence when there is none.
        """
        try:
            return ask(self.socket, request, timeout_s)
        except NotRunning as error:
            fail(str(error), EXIT_NOT_RUNNING)
        except Refused as error:
            fail(str(error))
        except TimeoutError:
            fail(f"the daemon did not answer within {timeout_s:g} s")

    def show(self, found: Any, table: Callable[[Any], str]) -> None:
        """
        Print what was found in the wanted form.
        """
        if self.output == "json":
            click.echo(json.dumps(found, default=str))
        elif self.output == "yaml":
            import yaml

            click.echo(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), nl=False)
        else:
            click.echo(table(found))


def fail(sentence: str, code: int = EXIT_FAILED) -> NoReturn:
    """
    End the program with a sentence.
    """
    click.echo(f"optimizerctl: {sentence}", err=True)
    sys.exit(code)


def columns(rows: list[list[str]]) -> str:
    """
    Rows with their columns under each other; the first is the head.
    """
    widths = [max(len(click.unstyle(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


class _Anywhere(click.Group):
    """
    A group whose options may also stand behind its commands: `status --output json`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        front, rest = [], list(args)
        for word in args[: args.index("--") if "--" in args else None]:
            name, equals, _ = word.partition("=")
            if name in _ANYWHERE and word in rest:
                at = rest.index(word)
                taken = rest[at : at + (1 if equals else 2)]
                del rest[at : at + len(taken)]
                front += taken
        return super().parse_args(ctx, [*front, *rest])


@click.group(cls=_Anywhere, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The daemon's admin.sock.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Configuration file that names the folder.")
@click.option("--output", type=click.Choice(["table", "json", "yaml"]), default="table", help="Form of the answer.")
@click.version_option(__version__, "-V", "--version", prog_name="optimizerctl")
@click.pass_context
def main(context: click.Context, socket_path: Path | None, config: Path | None, output: str) -> None:
    """
    Ask and tell a running llm-optimizer.
    """
    try:
        context.obj = Target(find_socket(socket_path, config), output)
    except OptimizerError as error:
        fail(f"{config}: {error}")


@main.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second.")
@click.pass_obj
def status(target: Target, service: str | None, watch: bool) -> None:
    """
    How the services are. Exit code: 0 healthy, 1 degraded, 2 unhealthy, 3 not running.
    """
    while True:
        document = target.ask({"command": "status"})
        if service is not None:
            if service not in document["services"]:
                fail(f"there is no service {service}; there are {', '.join(document['services'])}", 4)
            document["services"] = {service: document["services"][service]}
        if watch:
            click.clear()
        target.show(document, _status_table)
        if not watch:
            break
        time.sleep(1)
    sys.exit(EXIT_BY_STATUS[document["status"]])


def _status_table(document: dict[str, Any]) -> str:
    rows = [["SERVICE", "STATE", "PID", "UPTIME", "RESTARTS", "CPU%", "MEMORY", "PORTS", "LAST EXIT", "MESSAGE"]]
    for name, one in document["services"].items():
        rows.append(
            [
                name,
                click.style(one["state"], fg=_COLOURS.get(one["state"])),
                str(one["pid"] or "-"),
                _span(one["uptime_secs"]),
                str(one["restarts"]),
                f"{one['cpu_percent']:.1f}",
                f"{one['memory_bytes'] / 2**20:.0f}M",
                ",".join(str(port) for port in one["ports"].values()) or "-",
                one["last_exit"] or "-",
                one["message"] or "",
            ]
        )
    return f"{document['status']}, up {_span(document['uptime_secs'])}\n{columns(rows)}"


def _span(seconds: int) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


@main.command()
@click.argument("service")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 3600), default=60.0, help="Seconds to wait.")
@click.pass_obj
def restart(target: Target, service: str, timeout_s: float) -> None:
    """
    Restart SERVICE, or all, and wait for the outcome.
    """
    request = {"command": "restart", "service": service, "timeout_s": timeout_s}
    result = target.ask(request, timeout_s + 5)
    target.show(result, lambda found: "\n".join(f"{name}: {state}" for name, state in found["services"].items()))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print the completion script of a shell.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(kind(main, {}, "optimizerctl", "_OPTIMIZERCTL_COMPLETE").source())


class _Lazy(click.Group):
    """
    A group whose module is imported when one of its commands is asked for.
    """

    def __init__(self, module: str, **known: Any) -> None:
        super().__init__(**known)
        self._module = module

    def _load(self) -> click.Group:
        import importlib

        group: click.Group = importlib.import_module(f"optimizer.ctl.{self._module}").group
        return group

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._load().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._load().get_command(ctx, cmd_name)


class _LazyCommand(click.Command):
    """
    A command whose module is imported when it is invoked or its help is asked for.
    """

    def __init__(self, module: str, name: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> Any:
        import importlib

        real: click.Command = importlib.import_module(f"optimizer.ctl.{self._module}").command
        return real.make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return ctx.command.invoke(ctx)


main.add_command(_Lazy("tasks", name="tasks", short_help="List, show, declare and forget tasks."))
main.add_command(_Lazy("events", name="events", short_help="Follow, export and import events."))
main.add_command(_LazyCommand("replay", "replay", "Compare the daemon with what a recorded outcome table allows."))
main.add_command(_LazyCommand("select", "select", "Which variant is to serve a request?"))
