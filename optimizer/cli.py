"""
`llm-optimizer`: parse, load, run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optimizer import __version__
from optimizer.errors import EXIT_CONFIGURATION, EXIT_TEMPORARY, Invalid, Permanent, Problem, Transient

if TYPE_CHECKING:
    from optimizer.config.tree import Config

LEVELS = ["trace", "debug", "info", "warn", "error"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="Path to configuration file.")
@click.option("-l", "--log-level", type=click.Choice(LEVELS), help="Override log level.")
@click.option("--json-logs", is_flag=True, help="Enable JSON logging.")
@click.option("--validate-config", is_flag=True, help="Validate configuration and exit.")
@click.option("--print-default-config", is_flag=True, help="Print default configuration and exit.")
@click.version_option(__version__, "-V", "--version", prog_name="llm-optimizer")
def main(
    path: Path | None, log_level: str | None, json_logs: bool, validate_config: bool, print_default_config: bool
) -> None:
    """
    Learn which language-model variant serves each task best, from telemetry and feedback.
    """
    if print_default_config:
        from optimizer.config.printer import default_toml

        click.echo(default_toml(), nl=False)
        return
    from optimizer.config.loader import load

    overrides: dict[str, Any] = {}
    if log_level:
        overrides["observability.log_level"] = log_level
    if json_logs:
        overrides["observability.json_logging"] = True

    def read() -> Config:
        return load(path, overrides=overrides, check_tasks=_check_tasks)

    try:
        config = read()
    except Invalid as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_CONFIGURATION)
    if validate_config:
        for warning in config.warnings:
            click.echo(f"warning: {warning}", err=True)
        click.echo("valid")
        return
    from optimizer.supervisor.daemon import run

    try:
        sys.exit(run(config, read))
    except (Permanent, Transient) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_CONFIGURATION if isinstance(error, Permanent) else EXIT_TEMPORARY)


def _check_tasks(tasks: Sequence[dict[str, Any]]) -> list[Problem]:
    """
    All that is wrong with the declared `[[tasks]]`.
    """
    if not tasks:
        return []
    from optimizer.operations import validation

    problems: list[Problem] = []
    first: dict[str, int] = {}
    for i, declared in enumerate(tasks):
        found = validation.task(declared, path=f"tasks[{i}]")
        if isinstance(found, list):
            problems += found
        name = declared.get("task")
        if isinstance(name, str) and name and (before := first.setdefault(name, i)) != i:
            problems.append(
                Problem(f"tasks[{i}].task", f"is {name!r}, as is tasks[{before}].task", "a name of its own")
            )
    return problems
