"""
`LLM_OPTIMIZER__SECTION__KEY` in the environment overrides the file: `LLM_OPTIMIZER__INTEGRATIONS__JIRA__PROJECT` reaches
into a table, `LLM_OPTIMIZER__INTEGRATIONS__WEBHOOKS__0__SECRET` into the first of an array of tables.

A variable that was meant for us and is not understood is never passed over in silence.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from optimizer.errors import Problem

PREFIX: Final = "LLM_OPTIMIZER__"
_MEANT: Final = "LLM_OPTIMIZER_"
_OTHERS: Final = frozenset({"LLM_OPTIMIZER_SOCKET"})  # of optimizerctl
_LISTED: Final = 100  # entries of an array of tables


@dataclass
class Overrides:
    """
    What was found.

    Args:
        names: of the variable, by dotted key. problems: variables that name nothing. warnings: variables that look
            as if they were meant for us.
    """

    names: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def override(tree: dict[str, Any], env: Mapping[str, str], known: Iterable[str]) -> Overrides:
    """
    Put the values of the environment into `tree`, as texts.

    Args:
        known: the dotted keys that there are, for did-you-mean.
    """
    found = Overrides()
    right = {_flat(key): f"{PREFIX}{key.upper().replace('.', '__')}" for key in known}
    sections = {key.partition(".")[0] for key in known}
    for name in sorted(env, key=_natural):
        if not name.startswith(_MEANT) or name in _OTHERS:
            continue
        flat = _flat(name[len(_MEANT) :])
        if not name.startswith(PREFIX):
            # Kubernetes makes <SERVICE>_SERVICE_HOST for each of its services, also for one called llm-optimizer
            if flat in right and not (flat == "service_host" and "KUBERNETES_SERVICE_HOST" in env):
                found.warnings.append(f"{name} has no effect; did you mean {right[flat]}?")
            continue
        parts = name[len(PREFIX) :].lower().split("__")
        if len(parts) < 2 or not all(parts) or parts[0] not in sections:
            reason = "names no section" if all(parts) and len(parts) > 1 else "names no key"
            found.problems.append(Problem(name, reason, f"{PREFIX}SECTION__KEY{_meant(flat, right)}"))
        elif reason := _put(tree, parts, env[name]):
            found.problems.append(Problem(name, reason))
        else:
            found.names[dotted(parts)] = name
    return found


def dotted(parts: Iterable[str]) -> str:
    """
    `integrations.webhooks[0].url` from its parts.
    """
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(parts))


def _put(tree: dict[str, Any], parts: list[str], value: str) -> str:
    """
    Set one value; returns why it cannot be set, or nothing.
    """
    node: Any = tree
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        place: Any = part
        if isinstance(node, list):
            place = int(part) if part.isascii() and part.isdigit() and len(part) < 6 else -1
            if not 0 <= place <= min(len(node), _LISTED):
                return f"is entry {part} of {dotted(parts[:at])}, which has {len(node)}; the next one is {len(node)}"
            if place == len(node):
                node.append(None)
        elif not isinstance(node, dict):
            return f"reaches into {dotted(parts[:at])}, which is no table"
        if last:
            node[place] = value
            return ""
        below = node[place] if isinstance(node, list) else node.get(place)
        if below is None:
            below = node[place] = [] if parts[at + 1].isdigit() else {}
        node = below
    return ""


def _flat(name: str) -> str:
    return re.sub(r"_+", "_", name.lower().replace(".", "_")).strip("_")


def _natural(name: str) -> list[tuple[int, str]]:
    # entry 10 comes after entry 2; a table before what stands in it
    return [(int(part), "") if part.isdigit() and len(part) < 6 else (-1, part) for part in name.split("__")]


def _meant(flat: str, right: Mapping[str, str]) -> str:
    close = [flat] if flat in right else difflib.get_close_matches(flat, list(right), 1, 0.8)
    return f"; did you mean {right[close[0]]}?" if close else ""
