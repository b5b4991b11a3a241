"""
Files as people, editors and accidents write them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from config.conftest import Told, Written

from optimizer.config.loader import load
from optimizer.errors import Invalid

TOML = b'[rest_api]\nport = 8888\n\n[collector]\nkafka_brokers = ["a:1", "b:2"]\n'
YAML = b'rest_api:\n  port: 8888\ncollector:\n  kafka_brokers: ["a:1", "b:2"]\n'
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("text", "name"), [(TOML, "c.toml"), (YAML, "c.yaml"), (YAML, "c.YML"), (TOML, "c")])
def test_both_languages_say_the_same_with_any_line_end(
    written: Written, text: bytes, name: str, end: bytes, mark: bytes
) -> None:
    config = load(written(mark + text.replace(b"\n", end), name), {})
    assert config.section("rest_api").port == 8888
    assert config.section("collector").kafka_brokers == ("a:1", "b:2")


@pytest.mark.parametrize("name", ["c.toml", "c.yaml"])
@pytest.mark.parametrize("text", [b"", BOM, b"\n\n", b"# nothing but a comment\n"])
def test_an_empty_file_is_the_default(written: Written, text: bytes, name: str) -> None:
    assert load(written(text, name), {}).workers == load(None, {}).workers


def test_an_empty_section_of_yaml_is_the_default(written: Written) -> None:
    text = "rest_api:\n  # port: 1\nintegrations:\n  jira:\ntasks:\n"
    assert load(written(text, "c.yaml"), {}).workers == load(None, {}).workers


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (b"[rest_api]\nport = 1\nport = 2\n", "c.toml", "c.toml, line 3: port stands twice"),
        (b"[rest_api]\nport = 1\n[rest_api]\nport = 2\n", "c.toml", "c.toml, line 3: "),
        (b"rest_api.port = 1\nrest_api = {port = 2}\n", "c.toml", "c.toml, line 2: "),
        (b"[rest_api]\nport = \n", "c.toml", "c.toml, line 2: invalid value"),
        (b"[rest_api\n", "c.toml", "c.toml, line 1: "),
        (b"x = 1\n\x80\xff\n", "c.toml", "c.toml, line 2: is no text in UTF-8"),
        (b"\x7fELF\x02\x01\x00\x00", "c.toml", "c.toml, line 1: "),
        (b"\x7fELF\x02\x01\x00\x00", "c.yaml", "c.yaml: character 1 "),
        (b"x = " + b"9" * 5000, "c.toml", "c.toml: holds a number of too many digits"),
        (b"x = " + b"[" * 5000, "c.toml", "c.toml: is nested too deeply"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "c.toml", "c.toml: is nested too deeply"),
        (b"[" * 5000, "c.yaml", "c.yaml: is nested too deeply"),
        (b"x: " + b"[" * 50 + b"]" * 50, "c.yaml", "c.yaml, line 1: is nested more than 32 levels deep"),
        (b"a:\n  b: 1\n c: 2\n", "c.yaml", "c.yaml, line 3: "),
        (b"a: *nobody\n", "c.yaml", "c.yaml, line 1: "),
        (b"a: !!python/object/apply:os.system [id]\n", "c.yaml", "c.yaml, line 1: "),
        (b"--- {}\n--- {}\n", "c.yaml", "c.yaml, line 2: "),
        (b"[a, b]\n", "c.yaml", "c.yaml: holds no table"),
        (b"just words\n", "c.yaml", "c.yaml: holds no table"),
        (b"? [a, b]\n: 1\n", "c.yaml", "c.yaml, line 1: has a key that is no text"),
        (b"x: 2024-99-99\n", "c.yaml", "c.yaml: holds a date"),
        (b"#" * (1024 * 1024 + 1), "c.toml", "c.toml is too large"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(told: Told, text: bytes, name: str, expected: str) -> None:
    said = told(text, name)
    assert set(said) == {""}
    assert expected in said[""]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'[storage]\npostgres_url = "postgres://u:hunter2@h\n', "c.toml"),
        (b'[storage]\npostgres_url = "hunter2"\npostgres_url = "hunter2"\n', "c.toml"),
        (b"[storage]\nredis_url = 'a'\nhunter2 hunter2\n", "c.toml"),
        (b'storage:\n  postgres_url: "postgres://u:hunter2@h\n', "c.yaml"),
        (b"storage:\n  postgres_url: hunter2: hunter2\n", "c.yaml"),
        (b"storage:\n  postgres_url: %hunter2\n", "c.yaml"),
        (b"storage:\n  postgres_url: !!int hunter2\n", "c.yaml"),
        (b"storage: hunter2\n", "c.yaml"),
        (b'integrations = "hunter2"\n', "c.toml"),
        (b"[integrations]\nwebhooks = ['hunter2']\n", "c.toml"),
        (b"[integrations]\nwebhooks = 'hunter2'\n", "c.toml"),
        (b"[integrations]\njira = 'hunter2'\n", "c.toml"),
        (b"[integrations.jira]\napi_token = ['hunter2']\n", "c.toml"),
        (b"[storage]\npostgres_url = {password = 'hunter2'}\n", "c.toml"),
        (b"[[integrations.webhooks]]\nname = 'a'\nurl = 'ftp://h/hunter2'\n", "c.toml"),
        (b"[[integrations.webhooks]]\nname = 'a'\nurl = 'https://h/'\nsecret = 'whsec_hunter2!'\n", "c.toml"),
    ],
)
def test_no_message_repeats_a_secret(told: Told, text: bytes, name: str) -> None:
    said = told(text, name)
    assert said
    assert "hunter2" not in str(said)


def test_keys_that_stand_twice_in_yaml_are_named_with_both_lines(told: Told) -> None:
    said = told("rest_api:\n  port: 1\n  # hm\n  port: 2\ngrpc_api: {}\ngrpc_api: {}\n", "c.yaml")
    assert said["rest_api.port"] == "rest_api.port: stands twice (lines 2 and 4); expected it once"
    assert "lines 5 and 6" in said["grpc_api"]


def test_aliases_and_merges_of_yaml_work(written: Written) -> None:
    text = "rest_api: &api\n  timeout_secs: 7s\ngrpc_api:\n  <<: *api\n  port: 5\n"
    config = load(written(text, "c.yaml"), {})
    assert (config.section("grpc_api").timeout_secs, config.section("grpc_api").port) == (7, 5)


def test_a_bomb_of_aliases_is_refused_before_it_goes_off(told: Told) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "has more than 50000 values" in told("\n".join(levels), "c.yaml")[""]


def test_an_alias_of_itself_is_refused(told: Told) -> None:
    assert "nested more than 32 levels deep" in told("rest_api: &a\n  port: *a\n", "c.yaml")[""]


def test_every_key_of_yaml_has_its_line(told: Told) -> None:
    text = yaml.safe_dump(
        {
            "integrations": {"jira": {"project": 1}, "webhooks": [{"name": "a", "url": 3}, {"nam": "b"}]},
            "rest_api": {"port": "x"},
        }
    )
    said = told(text, "c.yaml")
    lines = text.split("\n")
    for key in (
        "integrations.jira.project",
        "integrations.webhooks[0].url",
        "integrations.webhooks[1].nam",
        "rest_api.port",
    ):
        line = next(i for i, line in enumerate(lines, 1) if line.strip(" -").startswith(f"{key.rpartition('.')[2]}:"))
        assert f"(line {line})" in said[key]


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "absent", "No such file"),
        (Path("/dev/zero"), "too large"),
    ):
        with pytest.raises(Invalid, match=why):
            load(path, {})
