"""
`optimizerctl select`.
"""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec

from optimizer.ctl import Target, fail
from optimizer.ctl.house import with_house
from optimizer.model import Scalar
from optimizer.operations.house import House
from optimizer.operations.registry import OPERATIONS
from optimizer.operations.selection import SelectRequest


@click.command("select")
@click.argument("task")
@click.option("--context", "pairs", multiple=True, metavar="NAME=VALUE", help="A feature of the request; repeatable.")
@click.option("--explain", is_flag=True, help="Say why.")
@click.pass_obj
def command(target: Target, task: str, pairs: tuple[str, ...], explain: bool) -> None:
    """
    Which variant is to serve a request of TASK?
    """
    context = dict(_pair(pair) for pair in pairs)

    async def act(house: House) -> Any:
        request = SelectRequest(task=task, context=context, explain=explain)
        return msgspec.to_builtins(await OPERATIONS["select"].run(house, request))

    target.show(with_house(target, act, follow=True), _text)


def _pair(text: str) -> tuple[str, Scalar]:
    name, equals, value = text.partition("=")
    if not equals:
        fail(f"--context {text}: expected NAME=VALUE")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    return name, found if isinstance(found, int | float | bool) else value


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['variant']}  (propensity {found['propensity']:.3f}, policy version {found['policy_version']})"]
    lines.append(found["selection_id"])
    if "explanation" in found:
        lines.append(found["explanation"]["summary"])
    return "\n".join(lines)
