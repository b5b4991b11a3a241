from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli import main
from optimizer.config.loader import load
from optimizer.config.printer import default_toml
from optimizer.errors import Invalid

SAMPLE = """
[service]
name = "llm-optimizer"
environment = "production"
host = "0.0.0.0"
[collector]
enabled = true
kafka_brokers = ["localhost:9092"]
kafka_topic = "llm-feedback"
[processor]
enabled = true
worker_threads = 4
[rest_api]
enabled = true
port = 8080
[grpc_api]
enabled = true
port = 50051
[storage]
postgres_url = "postgres://localhost:5432/llm_optimizer"
redis_url = "redis://localhost:6379"
sled_path = "./data/sled"
[observability]
log_level = "info"
json_logging = true
metrics_port = 9090
"""
BAD = """[rest_api]
port = "eighty"
prot = 1
[service_manager]
restart_backoff_base = "soon"
[observability]
log_level = "loud"
[grpc_api]
port = 99999
"""


def written(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_described_sample_is_accepted_and_what_has_no_effect_is_named(tmp_path: Path) -> None:
    config = load(written(tmp_path, SAMPLE), env={})
    told = "\n".join(config.warnings)
    for key in ("storage.postgres_url", "storage.redis_url", "collector.kafka_brokers", "storage.sled_path"):
        assert key in told
    assert config.section("storage").lmdb_path == "./data/sled"
    assert "localhost:5432" not in repr(config)


def test_every_mistake_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        load(written(tmp_path, BAD), env={})
    told = {problem.field: str(problem) for problem in caught.value.problems}
    assert set(told) == {
        "rest_api.port", "rest_api.prot", "service_manager.restart_backoff_base", "observability.log_level", "grpc_api.port",
    }  # fmt: skip
    assert "line 2" in told["rest_api.port"]
    assert "did you mean" in told["rest_api.prot"]


def test_the_command_line_says_so_with_the_exit_code(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["--config", str(written(tmp_path, BAD)), "--validate-config"])
    assert run.exit_code == 78
    run = CliRunner().invoke(main, ["--config", str(written(tmp_path, SAMPLE)), "--validate-config"])
    assert run.exit_code == 0


def test_the_printed_default_is_the_example_and_validates_without_a_warning(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "etc" / "llm-optimizer.toml"
    assert example.read_text() == default_toml()
    config = load(written(tmp_path, default_toml()), env={})
    assert config.warnings == ()
    assert config.workers == load(None, env={}).workers


def test_yaml_says_the_same(tmp_path: Path) -> None:
    config = load(written(tmp_path, "rest_api:\n  port: 8888\n", "config.yaml"), env={})
    assert config.section("rest_api").port == 8888


def test_the_environment_overrides_the_file_and_a_wrong_name_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "[rest_api]\nport = 1\n")
    assert load(path, env={"LLM_OPTIMIZER__REST_API__PORT": "8888"}).section("rest_api").port == 8888
    with pytest.raises(
        Invalid, match=r"LLM_OPTIMIZER__REST_APY__PORT: names no section.*did you mean LLM_OPTIMIZER__REST_API__PORT"
    ):
        load(path, env={"LLM_OPTIMIZER__REST_APY__PORT": "8888"})
    with pytest.raises(
        Invalid, match=r"rest_api\.prt: is no known key \(LLM_OPTIMIZER__REST_API__PRT\); expected port"
    ):
        load(path, env={"LLM_OPTIMIZER__REST_API__PRT": "8888"})


def test_secrets_come_from_files_and_variables_and_are_not_shown(tmp_path: Path) -> None:
    hidden = written(tmp_path, "whsec_c2VjcmV0\n", "secret")
    text = f'[[integrations.webhooks]]\nname = "x"\nurl = "https://example.org"\nsecret = "file:{hidden}"\n'
    webhook = load(written(tmp_path, text), env={}).section("integrations").webhooks[0]
    assert webhook.secret.reveal() == "whsec_c2VjcmV0"
    assert "c2VjcmV0" not in f"{webhook!r} {webhook.secret}"
    with pytest.raises(Invalid, match="NOT_THERE"):
        load(written(tmp_path, text.replace(f"file:{hidden}", "env:NOT_THERE")), env={})


def test_declared_tasks_that_nobody_declares_are_named(tmp_path: Path) -> None:
    text = "[[tasks]]\ntask = 'a'\n[rest_api]\nenabled = "
    assert load(written(tmp_path, text + "true\n"), env={}).warnings == ()
    (told,) = load(written(tmp_path, text + "false\n"), env={}).warnings
    assert told.startswith("tasks (line 1) has no effect")
