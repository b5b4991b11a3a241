"""
Answers as plain values, complete: fields at their default are there too, unlike in what travels between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from optimizer.model import Event, SystemEvent


def document(value: Any) -> Any:
    """
    A response of an operation as dicts, lists and scalars (datetimes stay); of an Event only what was observed.
    """
    if isinstance(value, Event | SystemEvent):
        return msgspec.to_builtins(value, builtin_types=(datetime,))
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name: document(field) for name, field in fields if field is not msgspec.UNSET}
    if isinstance(value, Mapping):
        return {key: document(field) for key, field in value.items()}
    if isinstance(value, list | tuple):
        return [document(item) for item in value]
    return value
