"""
Files of recorded outcomes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import Invalid
from optimizer.replay.formats import read
from optimizer.replay.table import Outcome, Request

ARMS = [
    {
        "prompt": "hello",
        "arms": {"a/b": {"reward": 0.5, "cost": 1e-5, "near_best": True}, "c": {"reward": 1, "cost": 0}},
    },
    {"prompt": "bye", "arms": {"a/b": {"reward": 0}}},
]
WIDE = "prompt,context.lang,context.n,a:quality,a:cost_usd,a:latency_ms,b:m:quality,b:m:error\n"


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_with_arms(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(lines(*ARMS))
    table = read(path)
    assert table.name == "table"
    assert table.variants == ("a/b", "c")
    assert table.requests[0].outcomes == {"a/b": Outcome(0.5, 1e-5), "c": Outcome(1.0, 0.0)}
    assert table.requests[1] == Request("bye", {}, {"a/b": Outcome(0.0)})


def test_wide_csv_packed_with_a_mark_quotes_and_cells_that_were_not_offered(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv.gz"
    text = "\ufeff" + WIDE + '"two\nlines, ""quoted""",de,2.5,1,0.001,300,,\nshort,,,,,,,timeout\n'
    path.write_bytes(gzip.compress(text.encode()))
    table = read(path)
    assert (table.name, table.variants) == ("wide", ("a", "b:m"))
    first, second = table.requests
    assert first.prompt == 'two\nlines, "quoted"'
    assert first.context == {"lang": "de", "n": 2.5}
    assert first.outcomes == {"a": Outcome(1.0, 0.001, 300.0)}
    assert second.outcomes == {"b:m": Outcome(error="timeout")}
    assert second.outcomes["b:m"].scored_quality == 0.0


def test_wide_jsonl_with_both_kinds_of_context(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_text(
        lines({"context": {"long": True}, "context.n": 3, "m:quality": 0.25, "m:time_to_first_token_ms": 9})
    )
    (request,) = read(path).requests
    assert request == Request("", {"long": True, "n": 3.0}, {"m": Outcome(0.25, time_to_first_token_ms=9.0)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column of a variant"),
        ("a,b\n1,2\n", "no column of a variant"),
        ('{"prompt": "x"}\n', "no recorded outcome"),
        ('{"arms": {"a": {"reward": 2}}}\n', "t:1: arms.a.quality: is 2; expected a number in 0..1"),
        ('{"arms": {"a": 3}}\n', "arms.a: is int; expected an object"),
        ('{"arms": []}\n', "arms: is list"),
        ("{}\n[1]\n", "t:2: is list"),
        ('{"a:quality": 1}\n{broken\n', "t:2: is not JSON"),
        ("a:quality,a:cost_usd\n1,-1\n", "t:2: a:cost_usd: is -1; expected a number >= 0"),
        ("a:quality\nnan\n", "a:quality: is nan"),
        ("a:quality\n1,2\n", "t:2: has 2 cells"),
        ("a:quality\n\xff", "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Invalid) as caught:
        read(path)
    assert told in str(caught.value)


def test_a_cut_archive_and_a_missing_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(lines(*ARMS * 50).encode())[:-20])
    for wrong in (path, tmp_path / "none", tmp_path):
        with pytest.raises(Invalid, match="cannot be read"):
            read(wrong)


cell = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), cell, cell), min_size=1))
def test_csv_and_jsonl_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    names = ["prompt", "x:quality", "y:quality"]
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(names)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    (folder / "t.csv").write_text(written.getvalue(), encoding="utf-8", newline="")
    (folder / "t.jsonl").write_text(lines(*(dict(zip(names, row, strict=True)) for row in rows)))
    if all(row[1] is row[2] is None for row in rows):
        with pytest.raises(Invalid):
            read(folder / "t.csv")
    else:
        assert read(folder / "t.csv").requests == read(folder / "t.jsonl").requests
