"""
What every command of `optimizerctl` uses: the daemon it speaks to, how answers are shown, how failures are told.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from optimizer.ctl.admin import NotRunning, Refused, ask

EXIT_FAILED: Final = 1
EXIT_NOT_RUNNING: Final = 3
_EXIT_BY_KIND: Final = {"not_found": 4, "not_permitted": 5}
_WHERE: Final = (
    "--socket, $LLM_OPTIMIZER_SOCKET, --config, $LLM_OPTIMIZER__SERVICE__RUNTIME_DIR, $RUNTIME_DIRECTORY, "
    "$XDG_RUNTIME_DIR/llm-optimizer, $LLM_OPTIMIZER__SERVICE__DATA_DIR/run, ./data/run, /run/llm-optimizer"
)


@dataclass(frozen=True)
class Target:
    """
    Which daemon, and how to show what it says: table, json or yaml.

    Args:
        given: the socket was named, not found. `config`: the file given by --config.
    """

    socket: Path
    output: str
    given: bool = True
    config: Path | None = None

    def ask(self, request: dict[str, Any], timeout_s: float = 10.0) -> Any:
        """
        The result of an admin command; ends the program with a sentence when there is none.
        """
        try:
            return ask(self.socket, request, timeout_s)
        except NotRunning as error:
            where = "" if self.given else f" (looked for by {_WHERE}, in this order)"
            fail(f"{error}{where}", EXIT_NOT_RUNNING)
        except Refused as error:
            fail(str(error), _EXIT_BY_KIND.get(error.kind, EXIT_FAILED))
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
