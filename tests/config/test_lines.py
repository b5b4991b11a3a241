"""
Lines of TOML keys, against documents whose lines are known.
"""

from __future__ import annotations

import tomllib
from typing import Any

import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.config.lines import toml_lines

TEXT = '''\
title = """
[not.a.table]
key = "\\""" # neither
"""
"quoted key" . 'other' = 1   # 5
[a.b]
x = 1.5                      # 7
[[c]]
day = 1979-05-27 07:32:00    # 9
[[c.d]]
y = { z = [1, {w = 2}], "v" = 3 }
[[c]]
[[c.d]]
y = \'\'\'
# [x]
\'\'\'\'
[c.d.e]
u = [
  1,
  [2, 3],  # ] }
  { t = "]" },
]
'''
LINES = {
    "title": 1,
    "quoted key": 5,
    "quoted key.other": 5,
    "a": 6,
    "a.b": 6,
    "a.b.x": 7,
    "c": 8,
    "c[0]": 8,
    "c[0].day": 9,
    "c[0].d": 10,
    "c[0].d[0]": 10,
    "c[0].d[0].y": 11,
    "c[0].d[0].y.z": 11,
    "c[0].d[0].y.z[0]": 11,
    "c[0].d[0].y.z[1]": 11,
    "c[0].d[0].y.z[1].w": 11,
    "c[0].d[0].y.v": 11,
    "c[1]": 12,
    "c[1].d": 13,
    "c[1].d[0]": 13,
    "c[1].d[0].y": 14,
    "c[1].d[0].e": 17,
    "c[1].d[0].e.u": 18,
    "c[1].d[0].e.u[0]": 19,
    "c[1].d[0].e.u[1]": 20,
    "c[1].d[0].e.u[1][0]": 20,
    "c[1].d[0].e.u[1][1]": 20,
    "c[1].d[0].e.u[2]": 21,
    "c[1].d[0].e.u[2].t": 21,
}


def test_a_text_with_everything_in_it() -> None:
    assert toml_lines(TEXT) == LINES
    assert toml_lines(TEXT.replace("\n", "\r\n")) == LINES


def _leaves(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in _leaves(one, f"{key}.{name}" if key else name)]
    if isinstance(value, list):
        return [leaf for i, one in enumerate(value) for leaf in _leaves(one, f"{key}[{i}]")]
    return [key]


_names = st.text("abcdefgh_-", min_size=1, max_size=6)
_scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.datetimes(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])),
    st.sampled_from(['"', "'", '"""', "'''", "#", "]", "}", "=", "[x]", "a\nb = 1\n[c]\n", "\\"]),
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_names, _values, max_size=4))
def test_every_key_of_any_document_has_a_line_that_names_it(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    rows = text.split("\n")
    found = toml_lines(text)
    for leaf in _leaves(tomllib.loads(text)):
        name = leaf.rpartition(".")[2].partition("[")[0]
        assert name in rows[found[leaf] - 1] or leaf.endswith("]")
