"""
The one tree of errors, cut by the caller's next move.

`Transient`: the same call may succeed later; retry. `Rejected`: no room now; slow down and keep the
data. `Invalid`: the input can never succeed; tell the sender which field. `Permanent`: stop. Anything
else that is raised is a bug and is allowed to end the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

EXIT_DONE: Final = 0
EXIT_TEMPORARY: Final = 75  # sysexits.h EX_TEMPFAIL: restart with back-off
EXIT_CONFIGURATION: Final = 78  # sysexits.h EX_CONFIG: a restart cannot help


class OptimizerError(Exception):
    """
    Root of all errors that are raised on purpose.
    """


class Transient(OptimizerError):
    """
    The same call may succeed later: a peer restarts, a deadline passed.

    Args:
        message: what failed, on which object, with which value.
        retry_after_s: seconds > 0 after which a retry is worth while.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(Transient):
    """
    There is no room now (queue, disk, concurrency): nothing was changed, slow down and keep the data.
    """


class Permanent(OptimizerError):
    """
    It cannot succeed without an operator: stop and say so.
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One mistake in one field of an input.

    Args:
        field: dotted path with indices, e.g. `variants[2].name`; empty for the whole input.
        reason: what is wrong, as half a sentence.
        expected: what would be right; empty where the reason says it.
    """

    field: str
    reason: str
    expected: str = ""

    def __str__(self) -> str:
        told = f"{self.field}: {self.reason}" if self.field else self.reason
        return f"{told}; expected {self.expected}" if self.expected else told


class Invalid(OptimizerError):
    """
    The input is wrong and stays wrong: every problem is listed, nothing was changed.
    """

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        self.problems = (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class NotFound(Invalid):
    """
    The thing that the input names does not exist.
    """


class Conflict(Invalid):
    """
    The thing exists already, or was changed by somebody else since it was read.
    """
