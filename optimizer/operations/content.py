"""
Which fields and attributes carry text of prompts and completions, to be dropped at the door. Pure.

No two instrumentations name them alike, and new names come with every release, so a list of names would always be too short.
Names are taken apart into words instead (`gcp.vertex.agent.llm_request`, `ai.response.toolCalls`, `system_prompt`): one word of
content is enough, unless the last word says that it is but a property of it (`prompt.name`, `input.mime_type`). Behind names that
say nothing, JSON that looks like messages is recognised. In doubt a text is dropped; numbers and booleans carry none and stay.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD: Final = re.compile(r"[A-Z]*[a-z]+|[A-Z]+|[0-9]+")
_CONTENT: Final = _words(
    """
    answer answers arg args argument arguments body chunk chunks completion completions content contents conversation
    description dialog dialogue document documents explanation history input inputs instruction instructions message messages
    output outputs payload prompt prompts queries query question questions result results stacktrace summary text texts
    thought thoughts tools transcript transcription translation
    """
)
_CONTENT_AT_THE_END: Final = _words(  # in the middle they say where something belongs: `gen_ai.response.id`
    """
    call calls data event events functions html json markdown object params raw request requests response responses
    value values
    """
)
_PROPERTY: Final = _words(  # as the last word
    """
    category class code count encoding finish format hash id ids index kind lang language length mime mode model name names
    reason reasons role size status tokens type types uri url version
    """
)
_INDEXED: Final = re.compile(
    r"(gen_ai|llm)\.(prompts?|completions?)(\..*)?", re.IGNORECASE
)  # but for its name and version
_NO_TEXT: Final = frozenset({"gen_ai.prompt.name", "gen_ai.prompt.version"})
_LIKE_MESSAGES: Final = re.compile(
    r'\\?"(content|messages?|prompts?|completions?|parts|text|inputs?|outputs?|arguments|choices|system)\\?"\s*:'
)
_LOOKED_AT: Final = 200  # characters of a name
_LOOKED_INTO: Final = 4096  # characters of a text


def is_content(name: str, value: Any) -> bool:
    """
    Whether a field or attribute of that name and value carries text of a prompt or a completion.
    """
    if value is None or isinstance(value, int | float):
        return False
    return names_content(name[:_LOOKED_AT]) or (isinstance(value, str) and looks_like_messages(value))


@lru_cache(maxsize=4096)
def names_content(name: str) -> bool:
    """
    Whether a field or attribute of that name carries text of a prompt or a completion, as far as its name says.
    """
    if _INDEXED.fullmatch(name):
        return name not in _NO_TEXT
    words = [word.lower() for word in _WORD.findall(name)]
    while words and words[-1].isdigit():
        words.pop()
    if not words or words[-1] in _PROPERTY:
        return False
    return words == ["system"] or words[-1] in _CONTENT_AT_THE_END or not _CONTENT.isdisjoint(words)


def looks_like_messages(text: str) -> bool:
    """
    Whether a text is JSON with messages in it.
    """
    begin = text[:_LOOKED_INTO]
    return begin.lstrip()[:1] in ("{", "[", '"') and _LIKE_MESSAGES.search(begin) is not None
