"""Shows which values or items a model holds to be alike: the nearest neighbours of a vector."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ConfigError, DataError, did_you_mean, list_names, unknown_name
from features.ops.cast import text_encoder
from pipelines.console import Console
from pipelines.vectors import (
    BUNDLE,
    COUNT,
    ENDINGS,
    FINGERPRINT,
    SEEN,
    UNSEEN,
    VALUE,
    VECTOR,
    Wanted,
    matrix_of,
    read_vectors,
    vectors_of,
)
from recsys.serving.neighbours import IndexKind, Neighbours, Similarity

_NOT_SHOWN = (BUNDLE, FINGERPRINT, SEEN, UNSEEN, VECTOR)


def neighbours(
    source: str,
    query: Sequence[str],
    console: Console,
    *,
    tracking_uri: str,
    data: str | None = None,
    item: Sequence[str] = (),
    keep: Sequence[str] = (),
    k: int = 10,
    similarity: Similarity = "cosine",
    index: IndexKind = "exact",
    min_count: int = 1,
) -> dict[str, Any]:
    """Show the nearest neighbours of a value or an item.

    What training never saw, and what occurs less often than `min_count`, is no candidate.

    Args:
        source: What `recsys export` wrote; or `models:/NAME@ALIAS`, `models:/NAME/VERSION`, the folder of a run or of a
            bundle.
        query: `feature=value`; for items `column=value`, several of them if it takes several to name one.
        console: Shows the table.
        tracking_uri: Store of the registry.
        data: Of a model: file or glob of rows that hold the values or items; a run has its own.
        item: Of a model: items in place of values, and the features that make their vectors.
        keep: Of a model: columns of the data to show beside each value.
        k: How many.
        similarity: cosine or dot.
        index: exact or ivf.
        min_count: Candidates occur so often in the data.

    Returns:
        query, similarity, index, candidates, left_out (by reason), neighbours (a line each: similarity, value, what was
        kept), the description of the vectors, seconds.

    Raises:
        ConfigError: FAISS is not installed, there is no such feature or column, or it has no rows of the table.
        ArtifactError: There is no such model or file.
        DataError: There is no such value, it is no id of the feature, training never saw it, or it names several rows.
    """
    started = time.perf_counter()
    wanted = dict(_parsed(text) for text in query)
    table, about = _open(source, wanted, data, item, keep, tracking_uri)
    place = _place(table, about, wanted)
    rows, left_out = _candidates(table, min_count, place)
    vectors = matrix_of(table)[rows]
    own = int(np.searchsorted(rows, place))
    found = Neighbours(vectors, similarity=similarity, index=index)
    similarities, places = (part[0] for part in found.of_rows(np.array([own]), k))
    shown = [name for name in table.column_names if name not in _NOT_SHOWN]
    lines = table.select(shown).take(rows[places[places >= 0]]).to_pylist()
    listed = [
        {"similarity": round(float(s), 4), **line} for s, line in zip(similarities[places >= 0], lines, strict=True)
    ]
    title = _title(table.select(shown).slice(place, 1).to_pylist()[0], about)
    console.table(title, [{name: _text(value) for name, value in line.items()} for line in listed])
    told = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    console.note(f"{similarity} among {len(rows) - 1:,} others ({index}){f'; left out: {told}' if told else ''}")
    return {
        "query": wanted,
        "similarity": similarity,
        "index": index,
        "candidates": len(rows) - 1,
        "left_out": left_out,
        "neighbours": listed,
        "vectors": about,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _parsed(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ConfigError("is no query", field=text, expected="feature=value, such as item_id=1193")
    return name, value


def _open(
    source: str,
    wanted: Mapping[str, str],
    data: str | None,
    item: Sequence[str],
    keep: Sequence[str],
    tracking_uri: str,
) -> tuple[pa.Table, dict[str, Any]]:
    if source.endswith(ENDINGS):
        for option, given in (("--data", data), ("--item", item), ("--keep", keep)):
            if given:
                raise ConfigError(
                    "goes with a model: exported vectors are what they are",
                    field=option,
                    mend="give it to `recsys export`",
                )
        return read_vectors(Path(source))
    if not item and len(wanted) != 1:
        raise ConfigError(
            "the value of one feature has neighbours",
            field=" ".join(wanted),
            expected="one feature=value",
            mend="name one, or the features of an item with --item",
        )
    feature = None if item else next(iter(wanted))
    vectors = vectors_of(source, data, Wanted(feature, tuple(item), tuple(keep)), tracking_uri=tracking_uri)
    return vectors.table(), vectors.about


def _place(table: pa.Table, about: Mapping[str, Any], wanted: Mapping[str, str]) -> int:
    """The row that is meant."""
    known = [about["feature"]] if "feature" in about else about["columns"]
    match = np.ones(len(table), bool)
    for name, value in wanted.items():
        if name not in known:
            raise unknown_name("the vectors are not of this", name, known, field=name)
        column = VALUE if "feature" in about else name
        texts = [None if one is None else str(one) for one in table.column(column).to_pylist()]
        text = text_encoder(about["value_dtype"], name)(value) if about.get("value_dtype") else value
        match &= np.array([one == text for one in texts])
        if not match.any():
            raise DataError(
                "there is no such value in the data",
                field=name,
                found=repr(value),
                mend=did_you_mean(value, (one for one in texts if one), "name one that occurs in the data"),
            )
    places = match.nonzero()[0]
    if len(places) > 1:
        raise DataError(
            "several items are meant",
            field=" ".join(f"{name}={value}" for name, value in wanted.items()),
            found=f"{len(places):,} rows",
            mend=f"name more of {list_names(about['columns'])}",
        )
    if not _seen(table)[places[0]]:
        raise DataError(
            "training never saw this",
            field=" ".join(f"{name}={value}" for name, value in wanted.items()),
            found="the vector of rows that it shares with others",
            mend="ask for one that was in the training rows",
        )
    return int(places[0])


def _candidates(table: pa.Table, min_count: int, query: int) -> tuple[np.ndarray, dict[str, int]]:
    """The rows among which neighbours are sought, the query's own with them, and how many others are left out."""
    seen = _seen(table)
    counts = pc.fill_null(table.column(COUNT), min_count).to_numpy()
    rare = seen & (counts < min_count)
    chosen = seen & ~rare
    chosen[query], rare[query] = True, False
    return chosen.nonzero()[0], {"never in training": int((~seen).sum()), "too rare": int(rare.sum())}


def _seen(table: pa.Table) -> np.ndarray:
    """Whether training may have seen each row: not those that it is known never to have."""
    if SEEN in table.column_names:
        return np.array([seen is not False for seen in table.column(SEEN).to_pylist()])
    return np.array([not names for names in table.column(UNSEEN).to_pylist()])


def _title(line: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What neighbours are sought of."""
    named = {about["feature"] if name == VALUE and "feature" in about else name: value for name, value in line.items()}
    return ", ".join(f"{name} {_text(value)}" for name, value in named.items() if value is not None)


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
