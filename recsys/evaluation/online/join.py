"""Predictions and the labels that come to them later, joined and cut into windows of event time.

What comes out is decided by the two logs alone, not by the pieces they are read in nor by which is read first. Held is
only what is not yet final.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.times import length_of, origin_of
from recsys.evaluation.online.clock import END, START, Clock
from recsys.evaluation.online.config import OnlineConfig
from recsys.evaluation.online.logs import INPUT, STREAM, read_labels, read_predictions

PREDICTION_COUNTS = ("read", "accepted", "late", "jumped", "duplicate")
LABEL_COUNTS = ("read", "matched", "late", "jumped", "duplicate", "contradicting", "overdue", "early", "orphan")

_REQUESTS = {"key": pl.Int64, "requested": pl.Int64, "label": pl.Int8, "label_place": pl.Int64}
_LABELS = {"place": pl.Int64, "key": pl.Int64, "time": pl.Int64, "label": pl.Int8}
_PREDICTIONS = {
    "place": pl.Int64,
    "key": pl.Int64,
    "request": pl.Int64,
    "requested": pl.Int64,
    **dict.fromkeys(STREAM, pl.String),
    "probability": pl.Float64,
}


@dataclass(frozen=True)
class Window:
    """The final rows of a window, in the order of the prediction log.

    Attributes:
        start: Microseconds since 1970-01-01 UTC.
        rows: `place`, `key`, `request`, `requested` (time of the request), the columns of `STREAM`, `probability`, the
            inputs, and `label` (Int8, null where none came in time).
    """

    start: int
    rows: pl.DataFrame


class DelayedJoin:
    """Joins the two logs.

    The rows of one request id are one request, whose time is that of the first of them that is accepted; its
    predictions (one a model, version and role) and labels count at that time. A label counts for a request if its own
    time is within `max_lead` before and `max_delay` after; of several the first in the log does. An id that comes
    again later than that is a new request.

    A window is final when no accepted prediction and no label can come to it any more: the prediction log's watermark
    has passed its end, and the label log's watermark its end and `max_delay`.

    Args:
        config: Lengths.

    Attributes:
        predictions: How many rows of the prediction log were `read` and what became of them: `accepted`, left out as
            `late` (behind the watermark), `jumped` (a clock ahead of all others), `duplicate` (model, version and role
            had predicted for the request), or by what `read_predictions` found wrong with them.
        labels: The same of the label log: `matched`, `late`, `jumped`, `duplicate` (the request had a label; of these
            `contradicting` said otherwise), `overdue` (after `max_delay`), `early` (before the prediction), `orphan`
            (no such request), or what `read_labels` found wrong.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self.config = config
        self._length, self._origin = length_of(config.window), origin_of(config.window)
        self._delay, self._lead = length_of(config.max_delay), length_of(config.max_lead)
        lateness, jump = length_of(config.lateness), length_of(config.max_jump)
        self._clocks = {name: Clock(lateness, jump, config.believed_after) for name in ("predictions", "labels")}
        self._over = False
        self._final = START
        """Windows that begin before it are final."""
        self.predictions: dict[str, int] = dict.fromkeys(PREDICTION_COUNTS, 0)
        self.labels: dict[str, int] = dict.fromkeys(LABEL_COUNTS, 0)
        self._inputs: dict[str, Any] = {}
        self._waiting = pl.DataFrame(schema=_PREDICTIONS)
        self._requests = pl.DataFrame(schema=_REQUESTS)
        self._labels = pl.DataFrame(schema=_LABELS)

    @property
    def waiting(self) -> dict[str, int]:
        """Predictions whose window is not final, and labels whose prediction has not come."""
        return {"predictions": self._waiting.height, "labels": self._labels.height}

    @property
    def newest(self) -> dict[str, int | None]:
        """The newest time of each log, in microseconds."""
        return {name: clock.newest for name, clock in self._clocks.items()}

    def update(self, predictions: pl.DataFrame | None = None, labels: pl.DataFrame | None = None) -> list[Window]:
        """Reads on in one log or both.

        Args:
            predictions: The next rows of the prediction log, see `read_predictions`.
            labels: The next rows of the label log, see `read_labels`.

        Returns:
            The windows that became final, the oldest first.

        Raises:
            DataError: A column is missing, or the time is no time.
            ValueError: The logs were said to be over.
        """
        if self._over:
            raise ValueError("the logs are over: nothing can be added")
        if predictions is not None and predictions.height:
            self._read_predictions(predictions)
        if labels is not None and labels.height:
            self._read_labels(labels)
        return self._advance()

    def finish(self) -> list[Window]:
        """Says that both logs are over; returns the windows that are left."""
        self._over = True
        return self._advance()

    def state(self) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
        """All there is to go on from, as plain values and tables."""
        values = {
            "clocks": {name: clock.state() for name, clock in self._clocks.items()},
            "over": self._over,
            "final": self._final,
            "predictions": self.predictions,
            "labels": self.labels,
        }
        return values, {"waiting": self._waiting, "requests": self._requests, "labels": self._labels}

    def restore(self, values: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> None:
        """Goes on from what `state` returned; the config must be the same."""
        self._clocks = {name: Clock(**clock) for name, clock in values["clocks"].items()}
        self._over, self._final = values["over"], values["final"]
        self.predictions, self.labels = dict(values["predictions"]), dict(values["labels"])
        self._waiting, self._requests, self._labels = (tables[name] for name in ("waiting", "requests", "labels"))
        self._inputs = {name: kind for name, kind in self._waiting.schema.items() if name.startswith(INPUT)}

    def _read_predictions(self, frame: pl.DataFrame) -> None:
        rows, left_out = read_predictions(frame)
        rows = self._placed(rows, frame.height, self.predictions, left_out)
        rows, watermarks = self._on_time(rows, "predictions")
        rows = self._requested(rows)
        # The request may be older than its row.
        rows = rows.join(watermarks, on="place", maintain_order="left")
        accepted = rows.filter(pl.col("requested") >= pl.col("watermark")).drop("watermark", "time")
        self.predictions["late"] += rows.height - accepted.height
        identity = ["key", "requested", *STREAM]
        fresh = accepted.unique(identity, keep="first", maintain_order=True)
        fresh = fresh.join(self._waiting.select(identity), on=identity, how="anti", maintain_order="left")
        self.predictions["duplicate"] += accepted.height - fresh.height
        self.predictions["accepted"] += fresh.height
        self._waiting = pl.concat([self._waiting, self._typed(fresh)], how="diagonal")

    def _typed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Each input in the type in which it first came; what cannot be read so is missing."""
        for name, kind in rows.schema.items():
            if name.startswith(INPUT):
                self._inputs.setdefault(name, kind)
        names = [name for name in self._inputs if name in rows.columns]
        return rows.select(*_PREDICTIONS, *(pl.col(name).cast(self._inputs[name], strict=False) for name in names))

    def _requested(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the time of their request; makes requests of those that are new."""
        known, found, opened = self._requests.select("key", "requested"), [], []
        while rows.height:
            near = rows.join(known, on="key", maintain_order="left")
            near = near.filter(pl.col("time") <= pl.col("requested") + (self._delay + self._lead))
            found.append(near.sort("place", "requested").unique("place", keep="first", maintain_order=True))
            rows = rows.join(near.select("place"), on="place", how="anti", maintain_order="left")
            known = rows.unique("key", keep="first", maintain_order=True).select("key", requested="time")
            opened.append(known)
        if opened:
            self._requests = pl.concat([self._requests, *opened], how="diagonal")
        return pl.concat(found).sort("place") if found else rows.with_columns(requested=pl.col("time"))

    def _read_labels(self, frame: pl.DataFrame) -> None:
        rows, left_out = read_labels(frame)
        rows = self._placed(rows, frame.height, self.labels, left_out)
        rows, _ = self._on_time(rows, "labels")
        self._labels = pl.concat([self._labels, rows.select(*_LABELS)])

    def _placed(
        self, rows: pl.DataFrame, read: int, counts: dict[str, int], left_out: Mapping[str, int]
    ) -> pl.DataFrame:
        before = counts["read"]
        counts["read"] += read
        for reason, count in left_out.items():
            counts[reason] = counts.get(reason, 0) + count
        return rows.with_columns(pl.col("place") + before)

    def _on_time(self, rows: pl.DataFrame, log: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows that are neither late nor ahead of the clock, and the watermark each row met."""
        jumped, watermarks = self._clocks[log].read(rows["time"].to_numpy())
        late = ~jumped & (rows["time"].to_numpy() < watermarks)
        counts = self.predictions if log == "predictions" else self.labels
        counts["jumped"] += int(jumped.sum())
        counts["late"] += int(late.sum())
        met = pl.DataFrame({"place": rows["place"], "watermark": watermarks})
        return rows.filter(~(jumped | late)), met

    def _advance(self) -> list[Window]:
        self._match()
        windows = list(self._close())
        self._give_up()
        self._forget()
        return windows

    def _match(self) -> None:
        """Gives labels to requests: the first in the log to each."""
        if not self._labels.height or not self._requests.height:
            return
        pairs = self._labels.join(self._requests.select("key", "requested"), on="key", maintain_order="left")
        pairs = pairs.filter(
            pl.col("time").is_between(pl.col("requested") - self._lead, pl.col("requested") + self._delay)
        )
        if not pairs.height:
            return
        first = pairs.unique(["key", "requested"], keep="first", maintain_order=True)
        offered = first.select("key", "requested", offer="label", offer_place="place")
        had = pl.col("label_place").is_not_null()
        self._requests = (
            self._requests.join(offered, on=["key", "requested"], how="left", maintain_order="left")
            .with_columns(
                label=pl.when(had).then("label").otherwise("offer"),
                label_place=pl.when(had).then("label_place").otherwise("offer_place"),
            )
            .drop("offer", "offer_place")
        )
        given = self._requests.select("key", "requested", kept="label", kept_place="label_place")
        pairs = pairs.join(given, on=["key", "requested"], maintain_order="left")
        again = pairs.filter(pl.col("place") != pl.col("kept_place"))
        self.labels["matched"] += pairs.height - again.height
        self.labels["duplicate"] += again.height
        self.labels["contradicting"] += again.filter(pl.col("label") != pl.col("kept")).height
        self._labels = self._labels.join(pairs.select("place"), on="place", how="anti", maintain_order="left")

    def _close(self) -> Iterator[Window]:
        final = min(self._watermark("predictions"), self._watermark("labels") - self._delay)
        final = (final - self._origin) // self._length * self._length + self._origin
        self._final = max(self._final, final)
        rows = self._waiting.filter(pl.col("requested") < self._final)
        if not rows.height:
            return
        self._waiting = self._waiting.filter(pl.col("requested") >= self._final)
        labels = self._requests.select("key", "requested", "label")
        rows = rows.join(labels, on=["key", "requested"], how="left", maintain_order="left")
        start = (pl.col("requested") - self._origin) // self._length * self._length + self._origin
        rows = rows.with_columns(start=start).sort("start", "place")
        for (begin,), window in rows.group_by("start", maintain_order=True):
            yield Window(int(begin), window.drop("start"))

    def _give_up(self) -> None:
        """Decides what labels are whose request will not come any more."""
        sure = self._watermark("predictions") - self._delay - self._lead
        lost = self._labels.filter(pl.col("time") < sure)
        if not lost.height:
            return
        self._labels = self._labels.filter(pl.col("time") >= sure)
        near = lost.join(self._requests.select("key", "requested"), on="key")
        behind = pl.col("time") - pl.col("requested")
        overdue = near.filter(behind.is_between(self._delay, 2 * self._delay, closed="right"))["place"]
        early = near.filter(behind.is_between(-self._delay - self._lead, -self._lead, closed="left"))["place"]
        overdue_places = set(overdue.to_list())
        early_places = set(early.to_list()) - overdue_places
        self.labels["overdue"] += len(overdue_places)
        self.labels["early"] += len(early_places)
        self.labels["orphan"] += lost.height - len(overdue_places) - len(early_places)

    def _forget(self) -> None:
        """Lets go of requests that no row to come can belong to."""
        predictions, labels = self._watermark("predictions"), self._watermark("labels")
        since = min(
            self._final,
            predictions - self._delay - self._lead,
            min(predictions - self._delay - self._lead, labels) - 2 * self._delay,
        )
        self._requests = self._requests.filter(pl.col("requested") >= since)

    def _watermark(self, log: str) -> int:
        return END if self._over else self._clocks[log].watermark
