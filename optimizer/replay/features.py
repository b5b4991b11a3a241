"""
Cheap features of a prompt, for the context of a selection: what an application could compute in microseconds itself.

Sizes are logarithms, shares are 0..1, the rest are flags; everything lies in 0..1, so that no scale has to be learned.
"""

from __future__ import annotations

import math
import re
from typing import Final

from optimizer.model import Scalar

_FLAGS: Final = {
    "options": r"(?m)^\s*\(?(?:[A-E]|[1-5])[).:]\s",
    "code": r"\b(?:python|function|def|class|return|import|javascript|sql|regex)\b|[{};]|```",
    "write": r"(?i)\b(?:write|implement|create|generate|compose)\b",
    "how_many": r"(?i)\bhow (?:many|much|long|far|old)\b",
    "why": r"(?i)\b(?:why|explain|reason)\b",
    "which": r"(?i)\bwhich\b",
    "what": r"(?i)\bwhat\b",
    "not": r"(?i)\b(?:not|except|false|never|incorrect)\b",
    "blank": r"_{2,}|\[MASK\]",
    "money": r"[$€£]\s?\d",
    "math": r"\d\s*[-+*/^=<>%]\s*\d|\\frac|\\sum|\bsqrt\b",
    "calls_for_steps": r"(?i)\bstep[- ]by[- ]step\b|\bshow your work\b",
    "heading": r"^\s*\[[^\]]{3,60}\]",
    "quoted": r"[\"“”'‘’].{3,}[\"“”'‘’]",
    "then": r"(?i)\b(?:if|then|when|before|after|each|every|per|total)\b",
    "true_false": r"(?i)\b(?:true|false|yes|no)\b",
}
_PATTERNS: Final = {name: re.compile(pattern) for name, pattern in _FLAGS.items()}
_MOST: Final = 20_000  # characters looked at; a longer prompt is known by its beginning and its length


def describe(prompt: str) -> dict[str, Scalar]:
    """
    The features of a prompt; an empty prompt has none.
    """
    if not prompt:
        return {}
    text = prompt[:_MOST]
    words = text.split()
    size = len(text)
    found: dict[str, Scalar] = {
        "log_chars": math.log1p(len(prompt)) / 10,
        "log_words": math.log1p(len(words)) / 10,
        "word_length": min(1.0, size / (len(words) + 1) / 10),
        "digits": min(1.0, 5 * sum(map(str.isdigit, text)) / size),
        "capitals": min(1.0, 5 * sum(map(str.isupper, text)) / size),
        "symbols": min(1.0, 5 * sum(not c.isalnum() and not c.isspace() for c in text) / size),
        "lines": min(1.0, math.log1p(text.count("\n")) / 4),
        "questions": min(1.0, text.count("?") / 3),
        "sentences": min(1.0, math.log1p(text.count(". ")) / 4),
        "asks_last": float(text.rstrip().endswith("?")),
    }
    for name, pattern in _PATTERNS.items():
        found[name] = float(pattern.search(text) is not None)
    return found
