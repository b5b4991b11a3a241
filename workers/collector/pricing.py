"""
What a call has cost, from the catalogue of the package genai-prices. A model that is not in it stays unpriced; nothing is
guessed.

The package and its data take a quarter of a second to import, so that is done with the first call that needs it. Its own
calculation takes 100 µs; where a model's prices are plain numbers a token, they are multiplied here instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import msgspec

from optimizer.model import Event

# gen_ai.provider.name -> the catalogue's provider; the others have the same name there, without punctuation
_PROVIDERS: Final = {
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "gcp.gen_ai": "google",
    "aws.bedrock": "aws",
    "azure.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "x_ai": "x-ai",
    "mistral_ai": "mistral",
}
_LINEAR: Final = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")


@dataclass(frozen=True, slots=True)
class _Linear:
    """
    US dollars a token of each kind.
    """

    fresh: float
    output: float
    cache_read: float
    cache_write: float


def priced(event: Event) -> Event | None:
    """
    The event with its cost; itself if it has one or has no tokens; None if its model is not in the catalogue.
    """
    if event.cost_usd is not None or (event.input_tokens is None and event.output_tokens is None):
        return event
    cost = _cost(event)
    return None if cost is None else msgspec.structs.replace(event, cost_usd=cost, cost_estimated=True)


def _cost(event: Event) -> float | None:
    provider = _PROVIDERS.get(event.provider, event.provider.replace(" ", "-").lower())
    found = _price(provider, event.model, event.time.date())
    tokens_in, tokens_out = event.input_tokens or 0, event.output_tokens or 0
    read = min(event.cache_read_tokens or 0, tokens_in)
    write = min(event.cache_write_tokens or 0, tokens_in - read)
    if isinstance(found, _Linear):
        fresh = tokens_in - read - write
        return fresh * found.fresh + tokens_out * found.output + read * found.cache_read + write * found.cache_write
    if found is None:
        return None
    from genai_prices import Usage

    usage = Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cache_read_tokens=read or None,
        cache_write_tokens=write or None,
    )
    return float(found.calc_price(usage)["total_price"])


@lru_cache(maxsize=4096)
def _price(provider: str, model: str, day: date) -> Any:
    """
    Linear prices, or the catalogue's own price for one with tiers; None for an unknown model.
    """
    from datetime import UTC, datetime, time

    from genai_prices import Usage, calc_price

    if not model:
        return None
    at = datetime.combine(day, time(12), UTC)
    try:
        found = calc_price(
            Usage(input_tokens=1), model_ref=model, provider_id=provider or None, genai_request_timestamp=at
        )
    except LookupError:
        return None
    price: Any = found.model_price
    given = {name: value for name in (*_LINEAR, "requests_kcount") if (value := getattr(price, name, None)) is not None}
    if not all(isinstance(value, Decimal) for value in given.values()) or "requests_kcount" in given:
        return price
    fresh, output, read, write = (float(given.get(name, Decimal(0))) / 1e6 for name in _LINEAR)
    return _Linear(
        fresh,
        output,
        read if "cache_read_mtok" in given else fresh,
        write if "cache_write_mtok" in given else fresh,
    )
