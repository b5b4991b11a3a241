"""
Costs against the catalogue's own calculation.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.model import Event
from workers.collector.pricing import _MAX_KNOWN, Catalogue, needs_price, priced

AT = datetime(2026, 6, 1, 18, 30, tzinfo=UTC)
MODELS = [
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-4o-mini-2024-07-18"),
    ("openai", "o1"),
    ("anthropic", "claude-sonnet-4-5"),  # tiers
    ("gcp.gemini", "gemini-2.5-pro"),  # tiers
    ("gcp.vertex_ai", "gemini-2.5-flash"),
    ("x_ai", "grok-4"),
    ("deepseek", "deepseek-chat"),  # by the hour
    ("mistral_ai", "mistral-large-latest"),
    ("", "gpt-4o-mini"),
]
_catalogue = Catalogue()


def event(**more: Any) -> Event:
    """
    A call.
    """
    return Event(id="e", time=AT, **more)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 400_000), st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_costs_are_those_of_the_catalogue(
    named: tuple[str, str], tokens: int, output: int, cached: float, written: float
) -> None:
    provider, model = named
    read = int(tokens * cached)
    write = int((tokens - read) * written)
    found = _catalogue.cost_usd(
        event(
            provider=provider,
            model=model,
            input_tokens=tokens,
            output_tokens=output,
            cache_read_tokens=read,
            cache_write_tokens=write,
        )
    )
    names = {"gcp.gemini": "google", "gcp.vertex_ai": "google", "x_ai": "x-ai", "mistral_ai": "mistral", "": None}
    usage = genai_prices.Usage(
        input_tokens=tokens, output_tokens=output, cache_read_tokens=read, cache_write_tokens=write
    )
    wanted = genai_prices.calc_price(
        usage, model, provider_id=names.get(provider, provider), genai_request_timestamp=AT
    )
    assert found == pytest.approx(float(wanted.total_price), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "nobody-1"), ("my-proxy", "gpt-4o-mini"), ("", "nobody-1"), ("openai", "")]
)
def test_the_unknown_stays_unpriced(provider: str, model: str) -> None:
    unknown = event(provider=provider, model=model, input_tokens=10, output_tokens=10)
    assert _catalogue.cost_usd(unknown) is None
    assert priced(unknown) is unknown


def test_what_was_not_told_is_not_guessed() -> None:
    known: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-mini"}
    assert _catalogue.cost_usd(event(**known, input_tokens=10)) is None
    assert _catalogue.cost_usd(event(**known, output_tokens=10)) is None
    assert _catalogue.cost_usd(event(**known, input_tokens=10, output_tokens=1, cache_read_tokens=11)) is None
    assert _catalogue.cost_usd(event(**known, input_tokens=10, error="RateLimitError")) == pytest.approx(1.5e-6)
    embedding = event(provider="openai", model="text-embedding-3-small", input_tokens=1_000_000)
    assert _catalogue.cost_usd(embedding) == pytest.approx(0.02)


def test_a_cost_of_the_sender_stays() -> None:
    assert not needs_price(event(model="gpt-4o-mini", input_tokens=1, output_tokens=1, cost_usd=0.5))
    assert not needs_price(event(model="gpt-4o-mini"))
    found = priced(event(provider="openai", model="gpt-4o-mini", input_tokens=20, output_tokens=12))
    assert found.cost_estimated
    assert found.cost_usd == pytest.approx(20 * 0.15e-6 + 12 * 0.6e-6)


def test_names_of_senders_do_not_pile_up() -> None:
    one = Catalogue()
    for i in range(2 * _MAX_KNOWN + 10):
        one.cost_usd(event(provider=f"p{i}", model="m", input_tokens=1, output_tokens=1))
    assert len(one._models) <= _MAX_KNOWN
    assert len(one._snapshot._provider_misses) <= _MAX_KNOWN
