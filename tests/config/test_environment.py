from __future__ import annotations

import pytest
from config.conftest import Told, Written

from optimizer.config.fields import Duration
from optimizer.config.loader import load

PREFIX = "LLM_OPTIMIZER__"
WEBHOOK = "[[integrations.webhooks]]\nname = 'a'\nurl = 'https://a.example'\n"


def environment(**given: str) -> dict[str, str]:
    return {f"{PREFIX}{name}": value for name, value in given.items()}


def test_every_type_can_be_written_as_text(written: Written) -> None:
    env = environment(
        REST_API__PORT=" 8888 ",
        REST_API__ENABLED="No",
        SERVICE_MANAGER__RESTART_JITTER="0.5",
        SERVICE_MANAGER__START_TIMEOUT="7",
        SERVICE_MANAGER__STABLE_AFTER="2m",
        SERVICE_MANAGER__CRITICAL="storage, collector",
        COLLECTOR__KAFKA_BROKERS='["a:1", "b:2,c"]',
        INTEGRATIONS__JIRA__PROJECT="OPT",
        SERVICE__NAME="",
    )
    config = load(written("[rest_api]\nport = 1\n[service_manager]\nrestart_jitter = 0\n"), env)
    assert config.section("rest_api").port == 8888
    assert config.section("rest_api").enabled is False
    assert config.service_manager.restart_jitter == 0.5
    assert config.service_manager.start_timeout == Duration(7)
    assert config.service_manager.stable_after == Duration(120)
    assert config.service_manager.critical == ("storage", "collector")
    assert config.section("collector").kafka_brokers == ("a:1", "b:2,c")
    assert config.section("integrations").jira.project == "OPT"
    assert config.service.name == ""


def test_it_reaches_into_arrays_of_tables(written: Written) -> None:
    env = environment(
        INTEGRATIONS__WEBHOOKS__0__URL="https://b.example",
        INTEGRATIONS__WEBHOOKS__1__NAME="c",
        INTEGRATIONS__WEBHOOKS__1__URL="https://c.example",
        INTEGRATIONS__WEBHOOKS__1__KINDS="service.*,policy.changed",
    )
    found = load(written(WEBHOOK), env).section("integrations").webhooks
    assert [(one.name, one.url) for one in found] == [("a", "https://b.example"), ("c", "https://c.example")]
    assert found[1].kinds == ("service.*", "policy.changed")


def test_eleven_entries_are_taken_in_the_order_of_their_numbers() -> None:
    env: dict[str, str] = {}
    for i in range(11):
        env |= environment(
            **{f"INTEGRATIONS__WEBHOOKS__{i}__NAME": f"n{i}", f"INTEGRATIONS__WEBHOOKS__{i}__URL": "http://a.b"}
        )
    found = load(None, env).section("integrations").webhooks
    assert [one.name for one in found] == [f"n{i}" for i in range(11)]


def test_a_whole_array_of_tables_may_be_json() -> None:
    env = environment(
        INTEGRATIONS__WEBHOOKS='[{"name": "a", "url": "https://a.example", "timeout": 3, "enabled": false}]'
    )
    (found,) = load(None, env).section("integrations").webhooks
    assert (found.name, found.timeout, found.enabled) == ("a", 3, False)


def test_the_command_line_overrides_both(written: Written) -> None:
    path = written("[observability]\nlog_level = 'warn'\n")
    env = environment(OBSERVABILITY__LOG_LEVEL="error")
    assert load(path, env).observability.log_level == "error"
    assert load(path, env, {"observability.log_level": "debug"}).observability.log_level == "debug"


def test_what_the_command_line_overrides_may_be_wrong_in_the_file(told: Told) -> None:
    said = told("observability = 3\n", observability__log_level="debug")
    assert said == {"observability": "observability: is a number (line 1); expected a table [observability]"}
    said = told(env=environment(OBSERVABILITY__LOG_LEVEL="x"), observability__log_level="loud")
    assert "(command line)" in said["observability.log_level"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLM_OPTIMIZER__REST_API_PORT", "LLM_OPTIMIZER__REST_API__PORT"),
        ("LLM_OPTIMIZER____REST_API__PORT", "LLM_OPTIMIZER__REST_API__PORT"),
        ("LLM_OPTIMIZER___REST_API__PORT", "LLM_OPTIMIZER__REST_API__PORT"),
        ("LLM_OPTIMIZER__RESTAPI__PORT", "LLM_OPTIMIZER__REST_API__PORT"),
        ("LLM_OPTIMIZER__PORT", ""),
        ("LLM_OPTIMIZER__", ""),
        ("LLM_OPTIMIZER__REST_API", ""),
        ("LLM_OPTIMIZER__TASKS__0__TASK", ""),
        ("LLM_OPTIMIZER__INTEGRATION__JIRA__PROJECT", "LLM_OPTIMIZER__INTEGRATIONS__JIRA__PROJECT"),
    ],
)
def test_a_variable_that_names_nothing_is_an_error(told: Told, name: str, meant: str) -> None:
    said = told(env={name: "8888"})
    assert set(said) == {name}
    assert "LLM_OPTIMIZER__SECTION__KEY" in said[name]
    assert (f"did you mean {meant}?" in said[name]) if meant else True


def test_an_unknown_key_is_named_with_its_variable(told: Told) -> None:
    said = told("[rest_api]\nport = 1\n", env=environment(REST_API__PROT="1"))
    assert said["rest_api.prot"] == (
        "rest_api.prot: is no known key (LLM_OPTIMIZER__REST_API__PROT); expected port; did you mean that?"
    )


def test_a_wrong_value_is_named_with_its_variable_though_the_file_has_the_key(told: Told) -> None:
    said = told("[rest_api]\nport = 1\n", env=environment(REST_API__PORT="eighty"))
    assert said["rest_api.port"].startswith('rest_api.port: is "eighty" (LLM_OPTIMIZER__REST_API__PORT); expected')


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("", "GRPC_API__PORT__X", "grpc_api.port: is a table (LLM_OPTIMIZER__GRPC_API__PORT__X)"),
        ("[grpc_api]\nport = 1\n", "GRPC_API__PORT__X", "reaches into grpc_api.port, which is no table"),
        (WEBHOOK, "INTEGRATIONS__WEBHOOKS__2__URL", "is entry 2 of integrations.webhooks, which has 1"),
        (WEBHOOK, "INTEGRATIONS__WEBHOOKS__URL__X", "is entry url of integrations.webhooks"),
        (WEBHOOK, "INTEGRATIONS__WEBHOOKS__0", "integrations.webhooks[0]: is text"),
        (WEBHOOK, "INTEGRATIONS__WEBHOOKS", "integrations.webhooks: is text"),
        ("", "INTEGRATIONS__WEBHOOKS__999999999__URL", "is entry 999999999"),
    ],
)
def test_no_override_is_passed_over_in_silence(told: Told, text: str, name: str, reason: str) -> None:
    said = told(text, env=environment(**{name: "x"}))
    assert reason in " ".join(said.values())


def test_one_underscore_too_few_is_a_warning_and_other_programs_variables_are_not() -> None:
    env = {
        "LLM_OPTIMIZER_REST_API__PORT": "1",
        "LLM_OPTIMIZER_LOG_LEVEL": "x",
        "LLM_OPTIMIZER_SOCKET": "/x",
        "LLM_OPTIMIZER_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "LLM_OPTIMIZER_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_HOST": "10.0.0.2",
        "OTHER__REST_API__PORT": "1",
    }
    config = load(None, env)
    assert config.warnings == (
        "LLM_OPTIMIZER_REST_API__PORT has no effect; did you mean LLM_OPTIMIZER__REST_API__PORT?",
    )
    del env["KUBERNETES_SERVICE_HOST"]
    assert any("LLM_OPTIMIZER__SERVICE__HOST" in warning for warning in load(None, env).warnings)
