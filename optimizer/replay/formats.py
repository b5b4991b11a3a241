"""
Files of recorded outcomes. Told apart by their content; `.gz` is unpacked on the way.

JSONL with arms: {"prompt": "…", "arms": {model: {"reward": 0..1, "cost": dollars}}}. Wide CSV or JSONL, one row a request:
columns `prompt`, `context.*`, and of each variant `<variant>:quality`, `:cost_usd`, `:latency_ms`,
`:time_to_first_token_ms`, `:error`; a variant of which all cells are empty was not offered for that request.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from optimizer.errors import Invalid, Problem
from optimizer.model import Scalar
from optimizer.replay.table import Outcome, Request, Table

MEASURES: Final = ("quality", "cost_usd", "latency_ms", "time_to_first_token_ms", "error")
_MAX_PROBLEMS: Final = 20
_CONTEXT: Final = "context."
_SHAPES: Final = "JSONL with `arms`, or CSV or JSONL with columns `<variant>:quality` (see optimizerctl replay --help)"


def read(path: Path) -> Table:
    """
    The table in a file.

    Raises:
        Invalid: it cannot be read or is none of the formats; every problem names its line, up to 20 of them.
    """
    requests: list[Request] = []
    problems: list[Problem] = []
    try:
        with _open(path) as stream:
            for line, found in _parse(stream):
                if isinstance(found, Request):
                    requests.append(found)
                elif len(problems) < _MAX_PROBLEMS:
                    problems += [
                        Problem(f"{path.name}:{line}: {p.field}".rstrip(": "), p.reason, p.expected) for p in found
                    ]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise Invalid(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if problems:
        raise Invalid(problems[:_MAX_PROBLEMS])
    variants = tuple(dict.fromkeys(name for request in requests for name in request.outcomes))
    if not variants:
        raise Invalid([Problem(path.name, "has no recorded outcome", _SHAPES)])
    return Table(path.name.removesuffix(".gz").rpartition(".")[0] or path.name, variants, tuple(requests))


def _open(path: Path) -> IO[str]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _parse(stream: IO[str]) -> Iterator[tuple[int, Request | list[Problem]]]:
    head = stream.readline()
    if not head.lstrip("\ufeff \t").startswith("{"):
        yield from _csv(head, stream)
        return
    for number, line in enumerate(_chain(head.lstrip("\ufeff"), stream), 1):
        if line.strip():
            try:
                raw = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, [Problem("", f"is not JSON: {error}")]
            else:
                yield number, request(raw)


def _chain(head: str, rest: IO[str]) -> Iterator[str]:
    yield head
    yield from rest


def _csv(head: str, stream: IO[str]) -> Iterator[tuple[int, Request | list[Problem]]]:
    rows = csv.reader(_chain(head.lstrip("\ufeff"), stream))
    columns = next(rows, [])
    if not any(name.rpartition(":")[0] and name.rpartition(":")[2] in MEASURES for name in columns):
        yield 1, [Problem("", "has no column of a variant", _SHAPES)]
        return
    for cells in rows:
        if len(cells) > len(columns):
            yield rows.line_num, [Problem("", f"has {len(cells)} cells", f"{len(columns)}, as the first line")]
        elif cells:
            yield rows.line_num, wide(dict(zip(columns, cells, strict=False)))


def request(raw: Any) -> Request | list[Problem]:
    """
    The request in one JSON line, or what is wrong with it.
    """
    if not isinstance(raw, Mapping):
        return [Problem("", f"is {type(raw).__name__}", "an object")]
    return _arms(raw) if "arms" in raw else wide(raw)


def _arms(raw: Mapping[str, Any]) -> Request | list[Problem]:
    arms = raw["arms"]
    if not isinstance(arms, Mapping):
        return [Problem("arms", f"is {type(arms).__name__}", "an object")]
    problems: list[Problem] = []
    outcomes: dict[str, Outcome] = {}
    for name, arm in arms.items():
        if not isinstance(arm, Mapping):
            problems.append(Problem(f"arms.{name}", f"is {type(arm).__name__}", "an object"))
            continue
        cells = {"quality": arm.get("reward", arm.get("quality")), "cost_usd": arm.get("cost", arm.get("cost_usd"))}
        cells |= {measure: arm.get(measure) for measure in MEASURES[2:]}
        outcome = _outcome(f"arms.{name}.", cells, problems)
        if outcome is not None:
            outcomes[str(name)] = outcome
    return problems or Request(str(raw.get("prompt", "")), _context(raw), outcomes)


def wide(raw: Mapping[str, Any]) -> Request | list[Problem]:
    """
    The request in one wide row, or what is wrong with it.
    """
    cells: dict[str, dict[str, Any]] = {}
    for column, value in raw.items():
        variant, colon, measure = column.rpartition(":")
        if colon and variant and measure in MEASURES:
            cells.setdefault(variant, {})[measure] = value
    problems: list[Problem] = []
    outcomes = {
        name: outcome for name, found in cells.items() if (outcome := _outcome(f"{name}:", found, problems)) is not None
    }
    return problems or Request(str(raw.get("prompt") or ""), _context(raw), outcomes)


def _context(raw: Mapping[str, Any]) -> dict[str, Scalar]:
    """
    Columns `context.*`, or an object `context`; a CSV's text that reads as a number is one.
    """
    nested = raw.get("context")
    found = {str(key): value for key, value in nested.items()} if isinstance(nested, Mapping) else {}
    found |= {key[len(_CONTEXT) :]: value for key, value in raw.items() if key.startswith(_CONTEXT)}
    context: dict[str, Scalar] = {}
    for key, value in found.items():
        if isinstance(value, str):
            number = _number(value)
            if value:
                context[key] = value if number is None else number
        elif isinstance(value, bool | int | float) and math.isfinite(value):
            context[key] = value if isinstance(value, bool) else float(value)
    return context


def _outcome(path: str, cells: Mapping[str, Any], problems: list[Problem]) -> Outcome | None:
    given = {measure: value for measure, value in cells.items() if value not in (None, "")}
    if not given:
        return None
    numbers: dict[str, float | None] = {}
    for measure in MEASURES[:-1]:
        value = given.get(measure)
        number = numbers[measure] = _number(value)
        top = 1.0 if measure == "quality" else math.inf
        if value is not None and (number is None or not 0 <= number <= top):
            expected = "a number in 0..1" if measure == "quality" else "a number >= 0"
            problems.append(Problem(path + measure, f"is {str(value)[:40]}", expected))
    error = given.get("error", "")
    told = "" if error in (False, 0, "0", "false", "False") else str(error)
    return Outcome(**numbers, error=told)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
