"""
`optimizerctl replay`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, get_args

import click

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: matrices of 49 × 49 gain nothing from threads

from optimizer.ctl import Target, columns, fail
from optimizer.ctl.house import with_house
from optimizer.errors import Invalid
from optimizer.model import PolicyKind, Price
from optimizer.operations.house import House
from optimizer.replay import live, offline
from optimizer.replay.course import Course
from optimizer.replay.formats import read
from optimizer.replay.report import Choices, report, rows
from optimizer.replay.table import Request, Table, Weights

_AMOUNT: Final = click.FloatRange(min=0)


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--ceiling", type=click.FloatRange(min=0, min_open=True), help="US dollars a request may cost on average."
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Orders of the requests.")
@click.option("--offline", "alone", is_flag=True, help="Without a daemon: the same learner, exact for a seed.")
@click.option("--policy", type=click.Choice(get_args(PolicyKind)), default="contextual", show_default=True)
@click.option("--train", type=click.Path(path_type=Path), help="A table to learn from first, not scored.")
@click.option("--price", "prices", multiple=True, metavar="VARIANT=IN,OUT", help="List price, $ per million tokens.")
@click.option("--quality", type=_AMOUNT, default=1.0, show_default=True, help="Weight of quality.")
@click.option("--cost", type=_AMOUNT, default=0.0, show_default=True, help="Weight of cost.")
@click.option("--latency", type=_AMOUNT, default=0.0, show_default=True, help="Weight of latency.")
@click.option(
    "--delay", type=click.IntRange(0, 100_000), default=20, show_default=True, help="Requests until an outcome."
)
@click.option("--no-features", is_flag=True, help="Send only the table's context.*, no features of the prompt.")
@click.pass_obj
def command(
    target: Target,
    file: Path,
    ceiling: float | None,
    seeds: int,
    alone: bool,
    policy: PolicyKind,
    train: Path | None,
    prices: tuple[str, ...],
    quality: float,
    cost: float,
    latency: float,
    delay: int,
    no_features: bool,
) -> None:
    """
    Feed a recorded outcome table through the daemon and compare what it reached with what the table allows: the best fixed
    variant, the best fixed mix, random choice and an oracle, all under the ceiling and in hindsight.

    \b
    FILE, also as .gz, is one of
      JSONL  {"prompt": "…", "arms": {model: {"reward": 0..1, "cost": dollars}}}
      CSV or JSONL, one row a request, with the columns prompt, context.*,
             <variant>:quality, <variant>:cost_usd, <variant>:latency_ms,
             <variant>:time_to_first_token_ms, <variant>:error
             (empty cells: that variant was not offered)
    Logs of decisions with propensities are for a later version.
    """
    try:
        table = read(file)
        course = Course(
            table=table,
            weights=Weights(quality, cost, latency, ceiling),
            policy=policy,
            prices=dict(_price(text, table) for text in prices),
            features=not no_features,
            delay=delay,
            train=_training(train, table),
        )
    except Invalid as error:
        fail(str(error))
    runs = _offline(course, seeds) if alone else _live(target, course, seeds)
    target.show(report(table, course.weights, runs), lambda found: f"{_head(found)}\n\n{columns(rows(found))}")


def _training(path: Path | None, table: Table) -> tuple[Request, ...]:
    if path is None:
        return ()
    known = read(path)
    strange = set(known.variants) - set(table.variants)
    if strange:
        raise Invalid(f"{path} has variants that {table.name} has not: {', '.join(sorted(strange))}")
    return known.requests


def _price(text: str, table: Table) -> tuple[str, Price]:
    name, equals, amounts = text.rpartition("=")
    try:
        tokens_in, tokens_out = (float(amount) for amount in amounts.split(","))
    except ValueError:
        equals = ""
    if not equals or not 0 <= min(tokens_in, tokens_out) <= max(tokens_in, tokens_out) < float("inf"):
        fail(f"--price {text}: expected VARIANT=IN,OUT, US dollars per million input and output tokens")
    if name not in table.variants:
        fail(f"--price {text}: there is no variant {name}; there are {', '.join(table.variants)}")
    return name, Price(input_usd_per_million=tokens_in, output_usd_per_million=tokens_out)


def _offline(course: Course, seeds: int) -> list[Choices]:
    with _progress(seeds * len(course.rows)) as tick:
        return [course.scored(seed, offline.replay(course, seed, tick)) for seed in range(seeds)]


def _live(target: Target, course: Course, seeds: int) -> list[Choices]:
    async def act(house: House) -> list[Choices]:
        with _progress(seeds * len(course.rows)) as tick:
            return [course.scored(seed, await live.replay(house, course, seed, tick)) for seed in range(seeds)]

    return with_house(target, act, follow=True)


@contextmanager
def _progress(length: int) -> Iterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, label="replay", file=sys.stderr, update_min_steps=50) as bar:
        yield lambda: bar.update(1)


def _head(found: dict[str, object]) -> str:
    ceiling = found["max_cost_per_request_usd"]
    under = "no ceiling" if ceiling is None else f"ceiling ${ceiling:g} a request"
    return f"{found['table']}: {found['requests']} requests, {found['seeds']} seed(s), {under}"
