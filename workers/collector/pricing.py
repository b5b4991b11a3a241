"""
What a call has cost, from the catalogue of the package genai-prices. A model that is not in it stays unpriced; nothing is
guessed.

The package and its data take a quarter of a second to import, so `load` does that in a thread, with the first call that needs
it. Its own calculation takes 100 µs; where a model's prices are plain numbers a token, they are multiplied here instead.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import msgspec

from optimizer.model import Event

# gen_ai.provider.name -> the catalogue's provider, where its own matching does not find it
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
_MAX_KNOWN: Final = 4096  # models remembered; senders choose their names, so there may be any number


@dataclass(frozen=True, slots=True)
class _Rates:
    """
    US dollars a token of each kind.
    """

    fresh: float
    output: float
    cache_read: float
    cache_write: float


class Catalogue:
    """
    Prices by provider and model. Not for use by several threads at once, but for `load`.
    """

    def __init__(self) -> None:
        self._package: Any = None
        self._snapshot: Any = None
        self._models: dict[tuple[str, str], Any] = {}
        self._rates: dict[int, _Rates | None] = {}

    @property
    def loaded(self) -> bool:
        """
        Whether `load` has been called.
        """
        return self._package is not None

    def load(self) -> None:
        """
        Import the catalogue; takes a quarter of a second.
        """
        package = importlib.import_module("genai_prices")
        self._snapshot = importlib.import_module("genai_prices.data_snapshot").get_snapshot()
        self._package = package

    def cost_usd(self, event: Event) -> float | None:
        """
        What the call of an event has cost; None if that cannot be known.
        """
        if not self.loaded:
            self.load()
        model = self._model(_PROVIDERS.get(event.provider, event.provider), event.model)
        if model is None:
            return None
        tokens, output = event.input_tokens or 0, event.output_tokens or 0
        read, write = event.cache_read_tokens or 0, event.cache_write_tokens or 0
        price = model.get_prices(event.time)
        rates = self._plain(price)
        if read + write > tokens or _untold(event, rates):
            return None  # no telling what was billed
        if rates is None:
            return self._calculated(price, tokens, output, read, write)
        fresh = tokens - read - write
        return fresh * rates.fresh + output * rates.output + read * rates.cache_read + write * rates.cache_write

    def _model(self, provider: str, model: str) -> Any:
        key = (provider, model)
        if key in self._models:
            return self._models[key]
        if len(self._models) >= _MAX_KNOWN:
            self._models.clear()
            # the snapshot remembers every name it was ever asked for, without a bound
            self._snapshot = type(self._snapshot)(providers=self._snapshot.providers, from_auto_update=False)
        found = None
        if model:
            try:
                found = self._snapshot.find_provider_model(model, None, provider or None, None)[1]
            except LookupError:
                found = None
        self._models[key] = found if found is not None and found.prices else None
        return self._models[key]

    def _plain(self, price: Any) -> _Rates | None:
        # prices live as long as the catalogue, so their identities do not come twice
        if id(price) not in self._rates:
            self._rates[id(price)] = _rates(price)
        return self._rates[id(price)]

    def _calculated(self, price: Any, tokens: int, output: int, read: int, write: int) -> float | None:
        usage = self._package.Usage(
            input_tokens=tokens, output_tokens=output, cache_read_tokens=read or None, cache_write_tokens=write or None
        )
        return float(price.calc_price(usage)["total_price"])


def _untold(event: Event, rates: _Rates | None) -> bool:
    """
    Whether a count is missing that has a price; a call that failed has no output.
    """
    output = event.output_tokens is None and not event.error and (rates is None or rates.output > 0)
    return output or (event.input_tokens is None and (rates is None or rates.fresh > 0))


def _rates(price: Any) -> _Rates | None:
    given = {name: value for name, value in vars(price).items() if value is not None}
    if not all(isinstance(value, Decimal) for value in given.values()) or "requests_kcount" in given:
        return None  # tiers, or a price for each request
    fresh, output = (float(given.get(name, 0)) / 1e6 for name in ("input_mtok", "output_mtok"))
    read, write = (
        float(given[name]) / 1e6 if name in given else fresh for name in ("cache_read_mtok", "cache_write_mtok")
    )
    return _Rates(fresh, output, read, write)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """
    The one of this process.
    """
    return Catalogue()


def needs_price(event: Event) -> bool:
    """
    Whether an event has no cost, but tokens to compute it from.
    """
    return event.cost_usd is None and (event.input_tokens is not None or event.output_tokens is not None)


def priced(event: Event) -> Event:
    """
    The event with its cost where it has none and it can be known, else the event itself.
    """
    cost = catalogue().cost_usd(event)
    return event if cost is None else msgspec.structs.replace(event, cost_usd=cost, cost_estimated=True)
