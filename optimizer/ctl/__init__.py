"""
`optimizerctl`: ask and tell a running daemon. Each command imports what it needs; `status` needs next to nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from optimizer import __version__
from optimizer.ctl.admin import find_socket
from optimizer.ctl.services import COMMANDS
from optimizer.ctl.target import Target, columns, fail
from optimizer.errors import OptimizerError

__all__ = ["Target", "columns", "fail", "main"]

_ANYWHERE = ("--socket", "--output")


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """
        As click does, with a hint for a mistyped name.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) from error


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
        named = socket_path is not None or "LLM_OPTIMIZER_SOCKET" in os.environ
        context.obj = Target(find_socket(socket_path, config), output, named, config)
    except OptimizerError as error:
        fail(f"{config}: {error}")


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


for command in COMMANDS:
    main.add_command(command)
main.add_command(_Lazy("config", name="config", short_help="Show, check and compare the configuration."))
main.add_command(_LazyCommand("logs", "logs", "Show and follow log lines of the services."))
main.add_command(_LazyCommand("doctor", "doctor", "Check configuration, folders, ports, limits; say what to do."))
main.add_command(_Lazy("tasks", name="tasks", short_help="List, show, declare and forget tasks."))
main.add_command(_Lazy("events", name="events", short_help="Follow, export and import events."))
main.add_command(_LazyCommand("replay", "replay", "Compare the daemon with what a recorded outcome table allows."))
main.add_command(_LazyCommand("select", "select", "Which variant is to serve a request?"))
