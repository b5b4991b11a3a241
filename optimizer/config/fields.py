"""
How a setting is declared: a dataclass field with its default, what it means, and what a reload may do with it.

    @dataclass(frozen=True, slots=True)
    class Settings:
        port: int = option(8080, "TCP port; 0 takes any free one", reload="restart", minimum=0, maximum=65535)

The loader, `--validate-config`, `--print-default-config` and the reload plan all read these declarations.
Types of fields: bool, int, float, str, Duration, Size, Secret, Path, tuple[str, ...], tuple of dataclasses (an array
of tables), dataclass (a sub-table); each also `| None`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Reload = Literal["live", "restart", "fixed"]


class Duration(float):
    """
    Seconds >= 0, written as "250ms", "1s", "5m", "2h" or "1d".
    """


class Size(int):
    """
    Bytes >= 0, written as "512MiB", "2GiB", "100MB" or a plain number.
    """


class Secret(str):
    """
    A value that is never printed: `repr` and `str` of it are stars; `reveal()` gives it.
    """

    def reveal(self) -> str:
        """
        The value itself, for the one call that needs it.
        """
        return str.__str__(self)

    def __str__(self) -> str:
        return "********"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


@dataclass(frozen=True, slots=True)
class Option:
    """
    What is known of a setting besides its type and default.

    Args:
        doc: what it means, with unit and range; becomes the comment in the printed configuration.
        reload: `live`: applied in the running process; `restart`: its service restarts; `fixed`: the daemon
            restarts.
        also: further services that read it, and restart with it.
        minimum, maximum: inclusive bounds of a number.
        choices: allowed strings.
        alias_of: the key whose older name this is (accepted, with a warning).
        required: in an array of tables, each has it. unique: no two have the same, and none is empty.
        hidden: the value may carry a secret, so messages do not show it.
        unused: why this version reads it but cannot use it yet (accepted, with a warning).
        check: further test of a value; returns what is expected, or "" if it is right.
    """

    doc: str
    reload: Reload = "restart"
    also: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    alias_of: str = ""
    required: bool = False
    unique: bool = False
    hidden: bool = False
    unused: str = ""
    check: Callable[[Any], str] | None = None


def option(default: Any, doc: str, **known: Any) -> Any:
    """
    Declare one setting; `known` are fields of Option.
    """
    return field(default=default, metadata={"option": Option(doc, **known)})


def table(kind: type, doc: str, **known: Any) -> Any:
    """
    Declare a sub-table with the settings of the dataclass `kind`.
    """
    return field(default_factory=kind, metadata={"option": Option(doc, **known)})
