"""
From a selection's context to numbers a linear model can learn from.

Each entry becomes one or two sparse features `(key, value)`; the key is 16 bits of the name's CRC, so features need no registry
and fit into a ticket. A number v gives its value clipped to -1..1 and its signed log1p(|v|)/10: one of the two has a useful
range whatever the unit, without any state that could drift. A bool gives 0 or 1, a string the indicator of `name=value`.

Source of the hashing: Weinberger et al. 2009, "Feature hashing for large scale multitask learning"; keys are then given slots by
the learner, so collisions need two names with equal 16 bits.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from optimizer.model import Scalar

Features = tuple[tuple[int, float], ...]

MAX_FEATURES: Final = 48  # of one context; a ticket carries them all

_HALF: Final = struct.Struct("<e")


def encode(context: Mapping[str, Scalar]) -> Features:
    """
    The features of a context, at most MAX_FEATURES, in order of names, rounded to what a ticket keeps (binary16).

    Values are in -10..10; the constant feature is not among them.
    """
    found: list[tuple[int, float]] = []
    for name in sorted(context):
        value = context[name]
        if isinstance(value, bool):
            found.append((_key(name), float(value)))
        elif isinstance(value, str):
            found.append((_key(f"{name}={value}"), 1.0))
        else:
            number = float(value)
            if math.isfinite(number):
                if -1 <= number <= 1:
                    found.append((_key(name), _half(number)))
                else:
                    found.append((_key(name), math.copysign(1.0, number)))
                    found.append((_key(f"log {name}"), _half(math.copysign(math.log1p(abs(number)) / 10, number))))
    return tuple(found[:MAX_FEATURES])


@functools.lru_cache(4096)  # an application sends the same few names again and again
def _key(name: str) -> int:
    return crc32(name.encode()) & 0xFFFF


def _half(value: float) -> float:
    number: float = _HALF.unpack(_HALF.pack(value))[0]
    return number
