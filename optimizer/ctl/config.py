"""
`optimizerctl config`: the configuration in effect, and what a file would make of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from optimizer.config.loader import load
from optimizer.config.tree import Config
from optimizer.ctl.services import reload_table
from optimizer.ctl.target import Target, columns, fail
from optimizer.errors import EXIT_CONFIGURATION, Invalid


@click.group()
def group() -> None:
    """
    Show, check and compare the configuration.
    """


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and (tree or not path):
        return {
            key: value for name, one in tree.items() for key, value in _flat(one, f"{path}.{name}".strip(".")).items()
        }
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return {key: value for i, one in enumerate(tree) for key, value in _flat(one, f"{path}[{i}]").items()}
    return {path: tree}


@group.command()
@click.pass_obj
def show(target: Target) -> None:
    """
    Every setting in effect in the running daemon; secrets as stars.
    """
    found = target.ask({"command": "config"})["config"]
    target.show(
        found, lambda tree: columns([["KEY", "VALUE"], *([key, _text(one)] for key, one in _flat(tree).items())])
    )


@group.command()
@click.argument("key")
@click.pass_obj
def get(target: Target, key: str) -> None:
    """
    One setting in effect, e.g. rest_api.port.
    """
    flat = _flat(target.ask({"command": "config"})["config"])
    if key not in flat:
        import difflib

        close = difflib.get_close_matches(key, flat, 1)
        fail(f"there is no key {key}" + (f"; did you mean {close[0]}?" if close else ""))
    target.show(flat[key], _text)


@group.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_obj
def validate(target: Target, file: Path | None) -> None:
    """
    Check FILE, or the one of --config: every mistake at once. Exit code 78 if there is one.
    """
    config = _load(file or target.config)
    target.show(
        {"valid": True, "warnings": list(config.warnings)}, lambda found: "\n".join([*found["warnings"], "valid"])
    )


@group.command()
@click.pass_obj
def diff(target: Target) -> None:
    """
    What a reload would change, and what each change takes.
    """
    target.show(target.ask({"command": "reload", "dry_run": True}), reload_table)


def _load(path: Path | None) -> Config:
    try:
        return load(path)
    except Invalid as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_CONFIGURATION)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
