"""What a server may be sent by somebody who means harm, or by a client with a fault: drawn by a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"

WIDE_SPEC: dict[str, Any] = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "known", "type": "id", "dtype": "boolean"},
        {"name": "tags", "type": "ids"},
        {"name": "shops", "type": "ids", "dtype": "integer", "pooling": "mean"},
        {"name": "words", "type": "ids", "separator": "|"},
        {"name": "title", "type": "ngrams"},
        {"name": "codes", "type": "semantic_id", "depth": 3},
        {"name": "seen", "type": "sequence", "length": 4, "times": "seen_at", "column": "seen", "unit": "s"},
        {"name": "price", "type": "number", "standardise": True, "missing_flag": True},
        {"name": "rank", "type": "bucket", "edges": [1, 10, 100]},
        {"name": "often", "type": "frequency", "column": "item"},
        {"name": "hour", "type": "time", "column": "at", "part": "hour", "unit": "s"},
        {"name": "day", "type": "cyclic", "column": "day", "part": "weekday"},
        {"name": "picture", "type": "vector", "size": 2},
        {"name": "user_item", "type": "cross", "of": ["user", "item"]},
    ],
    "labels": ["click", "buy"],
    "time": "at",
}
"""One feature of every sort."""


def wide_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `WIDE_SPEC`."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user": int(rng.integers(30)),
            "item": f"i{rng.integers(20)}",
            "known": bool(rng.integers(2)),
            "tags": [f"t{t}" for t in rng.integers(0, 9, 2)],
            "shops": rng.integers(0, 9, 2).tolist(),
            "words": "a|b",
            "title": "a red car",
            "codes": rng.integers(0, 4, 3).tolist(),
            "seen": ["i1", "i2"],
            "seen_at": [1_600_000_000, 1_600_000_100],
            "price": round(float(rng.gamma(2, 10)), 2),
            "rank": float(rng.integers(200)),
            "at": 1_700_000_000 + int(rng.integers(10**6)),
            "day": "2024-01-31T12:00:00",
            "picture": rng.normal(size=2).tolist(),
        }
        for _ in range(count)
    ]


def wide_bundle(folder: Path, **embedding: Any) -> Path:
    """A bundle of `WIDE_SPEC`."""
    frame = pl.DataFrame(wide_rows(200, 0), infer_schema_length=None).with_columns(pl.col("day").str.to_datetime())
    pipeline = FeaturePipeline(validate(FeatureSpec, WIDE_SPEC)).fit(frame)
    ids = pipeline.encode_frame(frame).ids.numpy()
    counts = {name: np.unique(ids[:, i], return_counts=True) for i, name in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100, **embedding})
    plan = plan_embedding(pipeline.layout, config, counts)
    model = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,)}), seed=1).eval()
    return save_bundle(folder, model=model, pipeline=pipeline)


@dataclass(frozen=True)
class Hostile:
    """A request that may or may not be wrong.

    Attributes:
        kind: What was done to it.
        path: Where it goes.
        media: Its Content-Type.
        body: Its bytes.
    """

    kind: str
    path: str
    media: str
    body: bytes


def bodies(count: int, seed: int, rows: list[dict[str, Any]]) -> Iterator[Hostile]:
    """Mutated bodies.

    Args:
        count: How many.
        seed: The same seed draws the same ones.
        rows: Rows that a model scores; what is sent is made of them.
    """
    draw = random.Random(seed)
    frame = pa.Table.from_pylist(rows)
    tables = {"/v1/score": frame, "/v1/rank": _candidates(frame)}
    streams = {
        path: [stream(table), stream(_other_layout(table)), stream(table.slice(0, 0))] for path, table in tables.items()
    }
    kinds = [*_JSON, *_ARROW]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if kind in _ARROW:
            path = draw.choice(list(tables))
            body = _ARROW[kind](draw, draw.choice(streams[path]), tables[path])
            yield Hostile(kind, path, ARROW, body)
        else:
            path = draw.choice(list(tables))
            yield Hostile(kind, path, JSON, _JSON[kind](draw, _request(draw, path, rows)))


def stream(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _request(draw: random.Random, path: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    some = draw.sample(rows, draw.randint(1, 3))
    if path == "/v1/score":
        return {"rows": [dict(row) for row in some]}
    shared = draw.sample(sorted(rows[0]), 4)
    candidates = [{name: value for name, value in row.items() if name not in shared} for row in some]
    return {"user": {name: rows[0][name] for name in shared}, "candidates": candidates, "k": 2, "by": "p_click"}


def _candidates(table: pa.Table) -> pa.Table:
    """The rows as candidates of one user, who has some of the columns."""
    of_user = table.column_names[::4]
    user = table.select(of_user).to_pylist()[0]
    told = {"request": json.dumps({"user": user, "k": 2, "by": "p_click"})}
    return table.drop_columns(of_user).replace_schema_metadata(told)


def _other_layout(table: pa.Table) -> pa.Table:
    """The same values in dictionaries, large lists, small and unsigned numbers."""
    columns = []
    for column in table.columns:
        kind = column.type
        if pa.types.is_string(kind):
            column = column.dictionary_encode()
        elif pa.types.is_list(kind):
            column = column.cast(pa.large_list(kind.value_type))
        elif pa.types.is_floating(kind):
            column = column.cast(pa.float32())
        columns.append(column)
    return pa.table(columns, names=table.column_names).replace_schema_metadata(table.schema.metadata)


# JSON

_TEXTS = ["", "a", "\x00", "\ud800", "NaN", "1", "1e999", "\u202e", "é" * 50, "9" * 400, "2024-02-30", "a" * 20_000]
_NUMBERS = [0, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 1.5, -0.0, 1e308, 5e-324, float(2**63)]


def _value(draw: random.Random, depth: int = 0) -> Any:
    pick = draw.randrange(9 if depth < 3 else 6)
    if pick < 2:
        return draw.choice(_TEXTS)
    if pick < 4:
        return draw.choice(_NUMBERS)
    if pick < 6:
        return draw.choice([None, True, False])
    if pick < 8:
        return [_value(draw, depth + 1) for _ in range(draw.choice([0, 1, 2, 30]))]
    return {draw.choice(_TEXTS): _value(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def _text(data: Any) -> bytes:
    # A lone surrogate is written as an escape, which is no text that UTF-8 can hold.
    return json.dumps(data).encode()


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key there."""
    found: list[tuple[Any, Any]] = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found += [(data, key), *_places(value)]
    return found


def _wrong_type(draw: random.Random, data: dict[str, Any]) -> bytes:
    data = json.loads(_text(data))
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(_places(data))
        holder[key] = _value(draw)
    return _text(data)


def _huge_number(draw: random.Random, data: dict[str, Any]) -> bytes:
    number = draw.choice(
        ["1e999", "-1e999", "9" * 5000, "1e-999", "0." + "3" * 5000, "-0", "1E+308", "00", "0x10", "+1"]
    )
    return re.sub(rb": -?\d[\d.]*", b": " + number.encode(), _text(data), count=draw.randint(1, 4))


def _no_number(draw: random.Random, data: dict[str, Any]) -> bytes:
    word = draw.choice([b"NaN", b"Infinity", b"-Infinity", b"nan", b"undefined", b"None", b"1_0", b".5"])
    return re.sub(rb": -?\d[\d.]*", b": " + word, _text(data), count=1)


def _nested(draw: random.Random, data: dict[str, Any]) -> bytes:
    deep = draw.choice([100, 1000, 1023, 1025, 10_000, 60_000])
    opened, closed = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opened * deep + b"1" + closed * draw.choice([deep, deep - 1, 0])
    row, rest = draw.choice([(b'{"rows": [{"tags": ', b"}]}"), (b'{"rows": ', b"}"), (b"", b"")])
    return row + inner + rest


def _twice(draw: random.Random, data: dict[str, Any]) -> bytes:
    text = _text(data)
    place = text.index(b"{", draw.choice([0, 1]))
    key = draw.choice([b'"rows"', b'"user"', b'"item"', b'"tags"', b'"candidates"'])
    return text[: place + 1] + key + b": " + _text(_value(draw)) + b", " + text[place + 1 :]


def _no_text(draw: random.Random, data: dict[str, Any]) -> bytes:
    text = _text(data)
    if draw.random() < 0.3:
        return draw.choice([text.decode().encode("utf-16"), b"\xef\xbb\xbf" + text, text.decode().encode("utf-32")])
    bad = draw.choice(
        [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\\ud800", b"\\u00", b"\x00"]
    )
    place = text.index(b'"', draw.randrange(len(text) // 2)) + 1
    return text[:place] + bad + text[place:]


def _long(draw: random.Random, data: dict[str, Any]) -> bytes:
    name = "rows" if "rows" in data else "candidates"
    row = data[name][0]
    pick = draw.randrange(5)
    if pick == 0:
        data[name] = [row] * draw.choice([300, 301, 500])
    elif pick == 1:
        row["tags"] = ["t"] * draw.choice([1000, 1001, 9000])
    elif pick == 2:
        row["title"] = "a " * draw.choice([1000, 40_000])
    elif pick == 3:
        row |= {f"unknown{i}": i for i in range(3000)}
    else:
        row["shops"] = list(range(draw.choice([999, 1001])))
    return _text(data)


def _lacking(draw: random.Random, data: dict[str, Any]) -> bytes:
    data = json.loads(_text(data))
    for _ in range(draw.randint(1, 6)):
        places = _places(data)
        if places:
            holder, key = draw.choice(places)
            del holder[key]
    return _text(data)


def _broken(draw: random.Random, text: bytes) -> bytes:
    """Some bytes flipped, cut, put in or said twice."""
    body = bytearray(text)
    for _ in range(draw.choice([1, 1, 2, 6])):
        place = draw.randrange(len(body) + 1)
        change = draw.choice([0, 0, 0, 1, 2, 3])
        if change == 0 and place < len(body):
            body[place] ^= draw.randint(1, 255)
        elif change == 1:
            del body[place : place + draw.randint(1, 40)]
        elif change == 2:
            body[place:place] = draw.randbytes(draw.randint(1, 8))
        else:
            body[place:place] = body[place : place + draw.randint(1, 60)]
    return bytes(body)


_JSON: dict[str, Callable[[random.Random, dict[str, Any]], bytes]] = {
    "intact": lambda draw, data: _text(data),
    "truncated": lambda draw, data: _text(data)[: draw.randrange(len(_text(data)))],
    "bytes changed": lambda draw, data: _broken(draw, _text(data)),
    "wrong type": _wrong_type,
    "wrong type again": _wrong_type,
    "huge number": _huge_number,
    "no number": _no_number,
    "deeply nested": _nested,
    "a key twice": _twice,
    "no UTF-8": _no_text,
    "too long": _long,
    "fields left out": _lacking,
    "noise": lambda draw, data: draw.randbytes(draw.choice([0, 1, 10, 1000, 60_000])),
}


# Arrow

_TYPES: list[Any] = [
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.binary_view(),
    pa.binary(4),
    pa.date32(),
    pa.date64(),
    pa.time64("ns"),
    pa.timestamp("ns", "Europe/Zurich"),
    pa.timestamp("s"),
    pa.timestamp("us", "no/where"),
    pa.duration("ms"),
    pa.month_day_nano_interval(),
    pa.decimal128(38, 10),
    pa.decimal256(76, 0),
    pa.null(),
    pa.list_(pa.string()),
    pa.list_(pa.float64(), 2),
    pa.list_(pa.list_(pa.int64())),
    pa.list_view(pa.int64()),
    pa.large_list(pa.int8()),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int64(), pa.int64()),
    pa.list_(pa.dictionary(pa.int8(), pa.string())),
    pa.run_end_encoded(pa.int32(), pa.int64()),
    pa.sparse_union([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
    pa.dense_union([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
    pa.opaque(pa.int64(), "a", "b"),
    pa.json_(),
    pa.uuid(),
]


def _other_types(draw: random.Random, body: bytes, table: pa.Table) -> bytes:
    """Columns of types that they should not have, empty or with nulls or with bytes that were never meant for them."""
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(table.num_columns)
        kind = draw.choice(_TYPES)
        table = table.set_column(place, table.column_names[place], _filled(draw, kind, len(table)))
    return stream(table)


def _filled(draw: random.Random, kind: Any, rows: int) -> pa.Array:
    """Random bytes for values, where values of the type are bytes alone; else nulls."""
    if pa.types.is_primitive(kind) and kind.bit_width >= 8 and draw.random() < 0.8:
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(draw.randbytes(rows * kind.bit_width // 8))])
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(rows, kind.storage_type))
    return pa.nulls(rows, kind)


def _lying(draw: random.Random, body: bytes, table: pa.Table) -> bytes:
    """A whole number of four or eight bytes somewhere, another one: lengths, offsets and counts are such."""
    out = bytearray(body)
    for _ in range(draw.randint(1, 3)):
        size = draw.choice([4, 8])
        place = draw.randrange(0, len(out) - size, 4)
        number = draw.choice([0, 1, 2**31 - 1, 2**31, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), draw.getrandbits(16)])
        out[place : place + size] = number.to_bytes(8, "little")[:size]
    return bytes(out)


_ARROW: dict[str, Callable[[random.Random, bytes, pa.Table], bytes]] = {
    "Arrow intact": lambda draw, body, table: body,
    "Arrow truncated": lambda draw, body, table: body[: draw.randrange(len(body))],
    "Arrow bytes changed": lambda draw, body, table: _broken(draw, body),
    "Arrow lengths changed": _lying,
    "Arrow lengths changed again": _lying,
    "Arrow of other types": _other_types,
    "Arrow of other types changed": lambda draw, body, table: _lying(draw, _other_types(draw, body, table), table),
}


# Broken HTTP

UNANSWERED = ("no line",)
"""What is no request yet: the server waits."""


def raw_requests(body: bytes) -> dict[str, bytes]:
    """Bytes on a connection that are no proper request, or hardly one.

    Args:
        body: A JSON body of `/v1/score` that a model scores.
    """
    post = b"POST /v1/score HTTP/1.1\r\nHost: here\r\nX-Timeout-Ms: 200\r\n"
    get = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    return {
        "length too small": post + b"Content-Length: 5\r\n\r\n" + body,
        "length too large": post + b"Content-Length: %d\r\n\r\n" % (len(body) + 50) + body,
        "length negative": post + b"Content-Length: -1\r\n\r\n" + body,
        "length huge": post + b"Content-Length: 99999999999999999999999999\r\n\r\n" + body,
        "length above the limit": post + b"Content-Length: 9999999999\r\n\r\n" + body,
        "length no number": post + b"Content-Length: five\r\n\r\n" + body,
        "length of another script": post + "Content-Length: ²\r\n\r\n".encode() + body,
        "two lengths": post + length + b"Content-Length: 3\r\n\r\n" + body,
        "no length": post + b"\r\n" + body,
        "no body": post + length + b"\r\n",
        "chunked": chunked + whole,
        "a byte a chunk": chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
        "chunk without end": chunked + b"5\r\nhel",
        "chunk size huge": chunked + b"ffffffffffffffff\r\n" + body,
        "chunk size above the limit": chunked + b"7fffffff\r\n" + body,
        "chunk size no number": chunked + b"zz\r\n" + body,
        "chunk size negative": chunked + b"-5\r\n" + body,
        "chunk with extensions": chunked + b"%x;a=b;c\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        "chunk with trailers": chunked + whole[:-2] + b"X-More: yes\r\n\r\n",
        "length and chunks": post + length + b"Transfer-Encoding: chunked\r\n\r\n" + whole,
        "unknown transfer encoding": post + b"Transfer-Encoding: gzip\r\n\r\n" + body,
        "expects something odd": post + length + b"Expect: the-unexpected\r\n\r\n" + body,
        "no line": b"\r\n\r\n",
        "noise": bytes(range(256)) * 4,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50),
        "HTTP/0.9": b"GET /healthz\r\n\r\n",
        "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
        "HTTP/9.9": b"GET /healthz HTTP/9.9\r\n\r\n",
        "unknown method": b"BREW /v1/score HTTP/1.1\r\nHost: here\r\n\r\n",
        "connect": b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n",
        "absolute address": b"GET http://other/healthz HTTP/1.1\r\nHost: other\r\n\r\n",
        "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
        "path up": b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: here\r\n\r\n",
        "path up, encoded": b"GET /%2e%2e/%2e%2e/etc/passwd%00 HTTP/1.1\r\nHost: here\r\n\r\n",
        "path no UTF-8": b"GET /%ff%fe HTTP/1.1\r\nHost: here\r\n\r\n",
        "path no ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: here\r\n\r\n",
        "path long": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        "path percent": b"GET /% HTTP/1.1\r\nHost: here\r\n\r\n",
        "header without colon": get + b"nonsense\r\n\r\n",
        "header with a null": get + b"X-Request-Id: a\x00b\r\n\r\n",
        "header no ASCII": post + length + b"X-Request-Id: \xff\xfe\r\nAuthorization: Bearer \xe9\r\n\r\n" + body,
        "header folded": get + b"X-Request-Id: a\r\n b\r\n\r\n",
        "header split": get + b"X-Request-Id: a\rSet-Cookie: b\r\n\r\n",
        "header long": get + b"X-Long: " + b"a" * 2_000_000,
        "headers many": get + b"".join(b"X-%d: a\r\n" % i for i in range(100_000)),
        "timeout long": b"POST /v1/score HTTP/1.1\r\nHost: here\r\nX-Timeout-Ms: " + b"9" * 5000 + b"\r\n\r\n",
        "upgrade": post + length + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + body,
        "websocket": get + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
        "many at once": (get + b"\r\n") * 500,
        "noise after a request": get + b"\r\n" + b"\x00\xff" * 50,
        "body of a question": get + b"Content-Length: 100000\r\n\r\n" + b"x" * 50_000,
    }
