from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from config.conftest import Written

from optimizer.catalog import SECTIONS
from optimizer.config.loader import load, settings_class
from optimizer.config.plan import plan

OLD = """
[[integrations.webhooks]]
name = "a"
url = "https://a.example"
secret = "whsec_b2xkaHVudGVyMg=="
"""


def changes(written: Written, before: str, after: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    found = plan(load(written(before, "a.toml"), {}), load(written(after, "b.toml"), {}))
    return {change.key: (change.how, change.services) for change in found.changes}


def test_the_same_configuration_takes_nothing(written: Written) -> None:
    found = plan(load(written(OLD), {}), load(written(OLD), {}))
    assert found.changes == ()
    assert found.restarts == frozenset()


@pytest.mark.parametrize(
    ("after", "key", "how", "services"),
    [
        ("[observability]\nlog_level = 'debug'\n", "observability.log_level", "live", ()),
        ("[collector]\nkafka_topic = 'x'\n", "collector.kafka_topic", "restart", ("collector",)),
        ("[collector]\nkeep_content = true\n", "collector.keep_content", "restart", ("collector", "rest_api", "grpc_api")),
        ("[service]\nenvironment = 'x'\n", "service.environment", "fixed", ()),
        ("[observability]\nmetrics_port = 1\n", "observability.metrics_port", "restart", ("metrics",)),
        ("[integrations.jira]\napi_token = 'x'\n", "integrations.jira.api_token", "restart", ("integrations",)),
        ("[[tasks]]\ntask = 't'\n", "tasks", "restart", ("rest_api",)),
    ],
)  # fmt: skip
def test_a_change_takes_what_its_declaration_says(
    written: Written, after: str, key: str, how: str, services: tuple[str, ...]
) -> None:
    assert changes(written, "", after) == {key: (how, services)}


def test_a_secret_that_changes_is_a_change_and_is_not_shown(written: Written) -> None:
    new = OLD.replace("b2xkaHVudGVyMg==", "bmV3aHVudGVyMg==")
    found = plan(load(written(OLD, "a.toml"), {}), load(written(new, "b.toml"), {}))
    assert [change.key for change in found.changes] == ["integrations.webhooks"]
    assert "aHVudGVy" not in str(found.document())
    assert "HVudGVyMg" not in str(found.document())


def test_what_is_fixed_stays_as_it_was_and_the_rest_is_new(written: Written) -> None:
    old = load(written("[rest_api]\nport = 1\n", "a.toml"), {})
    new = load(written("[rest_api]\nport = 2\n[service]\nenvironment = 'x'\ndata_dir = '/x'\n", "b.toml"), {})
    result = plan(old, new).result
    assert result.section("rest_api").port == 2
    assert (result.service, result.data_dir, result.runtime_dir) == (old.service, old.data_dir, old.runtime_dir)


def test_every_setting_that_differs_is_in_the_plan(written: Written) -> None:
    old = load(None, {})
    for section in SECTIONS:
        for field in fields(settings_class(section)):
            option = field.metadata["option"]
            value: Any = {bool: not field.default, int: int(option.minimum or 0) + 7}.get(type(field.default))
            if value is None or option.alias_of:
                continue
            text = str(value).lower()
            new = load(written(f"[{section}]\n{field.name} = {text}\n"), {})
            assert [change.key for change in plan(old, new).changes] == [f"{section}.{field.name}"]
