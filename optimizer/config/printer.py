"""
The default configuration as commented TOML, made from the declarations; it validates without a warning.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any, Final, get_args, get_origin, get_type_hints

from optimizer.catalog import SECTIONS
from optimizer.config.fields import Duration, Option, Secret
from optimizer.config.loader import settings_class
from optimizer.config.tree import Config
from optimizer.config.values import written

_HEAD: Final = """\
# The configuration of llm-optimizer: every key with its default.
# LLM_OPTIMIZER__SECTION__KEY in the environment overrides this file, the command line overrides both.
# After "[...]" stands what a change takes: live (none), restart (of that service), fixed (of the daemon).
# Secrets may be "file:/path" or "env:NAME". Durations are "250ms", "1s", "5m", "2h", "1d".
"""

_EXAMPLES: Final = """
# A receiver of system events; repeat the table for more.
# [[integrations.webhooks]]
{webhook}
# A task that is declared with the daemon; the same fields as in POST /api/v1/tasks.
# [[tasks]]
# task = "support-reply"
# policy = "thompson"
# variants = [{{name = "fast", model = "gpt-4o-mini"}}, {{name = "strong", model = "gpt-4o"}}]
"""


def default_toml() -> str:
    """
    What `llm-optimizer --print-default-config` prints, and `etc/llm-optimizer.toml` holds.
    """
    parts = [_HEAD]
    for section in SECTIONS:
        parts.append(f"\n[{section}]\n" + "".join(_lines(settings_class(section))))
    webhook = get_args(get_type_hints(settings_class("integrations"))["webhooks"])[0]
    parts.append(_EXAMPLES.format(webhook="".join(f"# {line}" for line in _plain(webhook))))
    return "".join(parts)


def shown(config: Config) -> dict[str, Any]:
    """
    Every setting in effect, by section; secrets as stars.
    """
    found: dict[str, Any] = {section: _shown(config.section(section)) for section in SECTIONS}
    found["tasks"] = [dict(task) for task in config.tasks]
    return found


def _shown(value: Any) -> Any:
    if is_dataclass(value):
        return {
            field.name: _shown(getattr(value, field.name))
            for field in fields(value)
            if not field.metadata["option"].alias_of
        }
    if isinstance(value, Duration):
        return written(value)
    if isinstance(value, Secret):
        return str(value) if value.reveal() else ""
    if isinstance(value, tuple):
        return [_shown(one) for one in value]
    return value


def _lines(kind: Any) -> list[str]:
    hints, lines = get_type_hints(kind), []
    for field in fields(kind):
        option: Option = field.metadata["option"]
        hint = hints[field.name]
        tables = is_dataclass(hint) or (get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]))
        if option.unused or option.alias_of or tables:
            continue
        comment = textwrap.fill(f"[{option.reload}] {option.doc}", 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{comment}\n{field.name} = {_toml(field.default)}\n")
    return lines


def _plain(kind: Any) -> list[str]:
    return [f"{field.name} = {_toml(field.default)}  # {field.metadata['option'].doc}\n" for field in fields(kind)]


def _toml(value: Any) -> str:
    if isinstance(value, Secret):
        return _toml(value.reveal())
    if isinstance(value, Duration):
        return _toml(written(value))
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, str):  # JSON's text is TOML's, but for DEL, and for halves of a character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _size(value: int) -> str | int:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return value
