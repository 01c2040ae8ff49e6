"""Bodies from strangers: rows, or a refusal that says why; never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from recsys.serving.server.bodies import BodyReader, Fields
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings

ROW = {"user": 1, "item": "a", "tags": ["x"], "price": 1.5}


def reader(**changes: Any) -> BodyReader:
    return BodyReader(ServerSettings(state=Path(), parent=1, max_rows=50, max_list=20, **changes))


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


ARROW = stream(pa.Table.from_pylist([ROW, dict.fromkeys(ROW)]))
USER = {"user": 1}
CANDIDATES = pa.Table.from_pylist([{name: ROW[name] for name in ("item", "tags", "price")}, {"item": "b"}])
RANKED = CANDIDATES.replace_schema_metadata({"request": json.dumps({"user": USER, "k": 1}), "pandas": "{}"})
BODIES = (
    json.dumps({"rows": [ROW]}).encode(),
    ARROW,
    json.dumps({"user": USER, "candidates": CANDIDATES.to_pylist(), "k": 1}).encode(),
    stream(RANKED),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.integers(0, 3))
    body = bytearray(BODIES[kind])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if change == "flip" and body:
            body[place] ^= draw(st.integers(1, 255))
        elif change == "cut":
            del body[place : place + draw(st.integers(1, 40))]
        elif change == "insert":
            body[place:place] = draw(st.binary(max_size=8))
        else:
            body[place:place] = body[place : place + draw(st.integers(1, 40))]
    return kind, bytes(body)


@settings(max_examples=300)
@given(mutated())
def test_a_mutated_body_is_scored_or_refused(model: ServedModel, drawn: tuple[int, bytes]) -> None:
    kind, body = drawn
    read = (reader().score_rows, reader().score_frame, reader().rank_rows, reader().rank_frame)[kind]
    try:
        found = read(body, model, Fields())
        rows, shared = (found.candidates, found.user) if kind >= 2 else (found, None)
        scores = model.score(model.encode(rows, shared))
    except (Refusal, DataError):
        return
    assert scores.shape == (len(rows), 1)


def test_what_is_left_out_is_null_and_counted_and_what_is_more_is_counted(model: ServedModel) -> None:
    fields = Fields()
    body = json.dumps({"rows": [{"user": 1, "more": 2}, ROW]}).encode()
    assert reader().score_rows(body, model, fields) == [{**dict.fromkeys(ROW), "user": 1}, ROW]
    assert fields.missing == {"item": 1, "tags": 1, "price": 1}
    assert fields.unknown == 1
    fields = Fields()
    frame = reader().score_frame(stream(pa.table({"user": [1, 2], "more": [1, 2]})), model, fields)
    assert frame.select(list(ROW)).rows() == [(1, None, None, None), (2, None, None, None)]
    assert fields.missing == {"item": 2, "tags": 2, "price": 2}
    assert fields.unknown == 2


def test_fields_of_a_rank_request_are_counted_a_candidate_each(model: ServedModel) -> None:
    fields = Fields()
    body = {"user": {"user": 1}, "candidates": [{"item": "a"}, {"tags": ["x"]}], "k": 1}
    asked = reader().rank_rows(json.dumps(body).encode(), model, fields)
    assert asked.candidates == [{"item": "a", "tags": None}, {"item": None, "tags": ["x"]}]
    assert asked.user == {"user": 1, "price": None}
    assert fields.missing == {"item": 1, "tags": 1, "price": 2}


def test_candidates_in_arrow_are_those_in_json(model: ServedModel) -> None:
    of_json, of_arrow = Fields(), Fields()
    asked = reader().rank_frame(BODIES[3], model, of_arrow)
    assert asked == reader().rank_rows(BODIES[2], model, of_json)
    assert (asked.user, asked.k) == (USER, 1)
    assert asked.candidates[1] == {"item": "b", "tags": None, "price": None}
    assert of_arrow == of_json == Fields()
    fields = Fields()
    asked = reader().rank_frame(stream(pa.table({"item": ["a", "b"], "more": [1, 2]})), model, fields)
    assert (asked.user, asked.k) == ({"user": None, "tags": None, "price": None}, 50)
    assert (fields.missing, fields.unknown) == ({"user": 2, "tags": 2, "price": 2}, 2)


@pytest.mark.parametrize(
    ("request_", "status", "field", "says"),
    [
        ("{", 400, None, "the metadata 'request' is no JSON"),
        ("[]", 400, None, "the metadata 'request' is no JSON object"),
        (b"\xff", 400, None, "the metadata 'request' is no JSON"),
        ('{"usr": {}}', 422, "usr", "did you mean 'user'?"),
        ('{"candidates": []}', 422, "candidates", "unknown key"),
        ('{"user": {"item": "a"}}', 422, "item", "by the user and by a candidate"),
        ('{"user": 1}', 422, "user", "an object of fields"),
        (json.dumps({"user": {"tags": ["a"] * 21}}), 422, "tags", "list is too long"),
        ('{"k": 0}', 422, "k", "above 0"),
        ('{"by": "p_sale"}', 422, "by", "p_click"),
    ],
)
def test_a_wrong_request_in_the_metadata_is_named(
    model: ServedModel, request_: str | bytes, status: int, field: str | None, says: str
) -> None:
    table = pa.table({"item": ["a"]}).replace_schema_metadata({"request": request_})
    with pytest.raises(Refusal) as refused:
        reader().rank_frame(stream(table), model, Fields())
    assert (refused.value.status, refused.value.field) == (status, field)
    assert says in refused.value.message


def test_unknown_fields_are_refused_if_asked_for(model: ServedModel) -> None:
    body = json.dumps({"rows": [{**ROW, "itme": "b"}]}).encode()
    with pytest.raises(Refusal, match=r"itme: the model reads no such field. Mend: did you mean 'item'\?") as refused:
        reader(unknown_fields="refuse").score_rows(body, model, Fields())
    assert (refused.value.status, refused.value.field) == (422, "itme")


@pytest.mark.parametrize(
    ("table", "status", "says"),
    [
        (pa.table({"user": pa.nulls(10**7)}), 413, "at most 50"),
        (pa.table({"tags": [["a"] * 21]}), 422, "list is too long"),
        (pa.table({"item": [{"a": 1}]}), 422, "type is not read"),
        (pa.table([[1], [2]], names=["user", "user"]), 400, "two columns have one name"),
    ],
)
def test_a_stream_that_unfolds_to_much_is_refused(model: ServedModel, table: pa.Table, status: int, says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        reader().score_frame(stream(table), model, Fields())
    assert refused.value.status == status


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_streams_are_refused(model: ServedModel, codec: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    for column in (pa.array(["a" * 10**5]), pa.array(["a" * 10**5] * 3).dictionary_encode()):
        with pytest.raises(Refusal, match="compressed"):
            reader().score_frame(stream(pa.table({"item": column}), options=options), model, Fields())


def test_dictionaries_and_streams_of_polars_are_read(model: ServedModel) -> None:
    dictionary = pa.table({"item": pa.array(["a", None, "a"]).dictionary_encode()})
    frame = reader().score_frame(stream(dictionary), model, Fields())
    assert frame["item"].cast(pl.String).to_list() == ["a", None, "a"]
    of_polars = stream(pl.DataFrame([ROW]).to_arrow())
    assert reader().score_frame(of_polars, model, Fields()).select(list(ROW)).rows() == [(1, "a", ["x"], 1.5)]
