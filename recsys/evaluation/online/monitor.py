"""What a model's predictions are worth while it serves: metrics a window and in total, by model, and drift alarms."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import polars as pl

from features.errors import ArtifactError, UndefinedMetricError
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.online.anytime import AnytimeDifference
from recsys.evaluation.online.config import OnlineConfig
from recsys.evaluation.online.drift import DriftWatch
from recsys.evaluation.online.join import DelayedJoin, Window
from recsys.evaluation.online.logs import ROLES, STREAM
from recsys.evaluation.online.reference import Reference
from recsys.evaluation.online.split import SplitTraffic
from recsys.evaluation.paired import paired_auc, paired_logloss
from recsys.evaluation.streaming import StreamingMetrics

STATE_VERSION = 3
METRICS = ("auc", "logloss", "normalised_entropy", "calibration_ratio", "base_rate", "mean_prediction")
"""Of a window and in total, in the order they are shown; each may be undefined."""
TOTALS = ("auc", "logloss", "normalised_entropy", "calibration_ratio", "base_rate")
"""Over all windows."""

T = TypeVar("T")
Stream = tuple[str, ...]
"""Role, model and version."""


class Monitor:
    """Reads the two logs and measures every window once it is final.

    Whether the logs are read at once, in pieces, or by several monitors of which each goes on from the state of the one
    before, the results are the same bits.

    Args:
        config: Lengths and levels.
        reference: Rows with `probability` and inputs from before the log, such as the model's own training data; the
            first window of each model when left out.

    Attributes:
        windows: A row a window and model: `window` (its start), `role`, `model`, `version`, `rows`, `labelled` (those
            to which a label came), `METRICS`, `ece`, and `psi` (of the predictions, above chance).
        differences: A row a window and model that scored requests of the champion's too: `window`, `role`, `model`,
            `version`, `rows`, and of AUC and logloss the model's less the champion's with 95 % intervals, each for one
            look.
        looks: A row a window and test that may be looked at at any time, as it stood after that window: `window`,
            `role`, `model`, `version`, `champion`, `of` (`logloss` on the requests that both scored, or `label_rate` on
            split traffic), `rows`, `mean` (the model's less the champion's), `low`, `high` and `verdict`.
        alarms: A row an alarm: `window`, `role`, `model`, `version` and the fields of `Alarm`.
    """

    def __init__(self, config: OnlineConfig, reference: Reference | None = None) -> None:
        self.config = config
        self.join = DelayedJoin(config)
        self._reference = reference
        self._watches: dict[Stream, DriftWatch] = {}
        self._totals: dict[Stream, StreamingMetrics] = {}
        self._anytime: dict[tuple[Stream, Stream], AnytimeDifference] = {}
        self._splits: dict[tuple[Stream, Stream], SplitTraffic] = {}
        self.windows: list[dict[str, Any]] = []
        self.differences: list[dict[str, Any]] = []
        self.looks: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []

    def update(self, predictions: pl.DataFrame | None = None, labels: pl.DataFrame | None = None) -> int:
        """Reads on in one log or both, see `DelayedJoin.update`; returns how many windows became final."""
        return self._measure(self.join.update(predictions, labels))

    def finish(self) -> int:
        """Says that both logs are over; returns how many windows were left."""
        return self._measure(self.join.finish())

    def totals(self) -> list[dict[str, Any]]:
        """A row a model over all final windows: `role`, `model`, `version`, `windows`, `rows`, `TOTALS`, which are
        exact but for the AUC, and `auc_error` (how far that may be from the exact one)."""
        rows = []
        for stream in sorted(self._totals, key=_order):
            windows = sum(1 for row in self.windows if tuple(row[name] for name in STREAM) == stream)
            named = dict(zip(STREAM, stream, strict=True))
            (found,) = self._totals[stream].compute().values()
            values = {name: found.get(name) for name in ("rows", *TOTALS, "auc_error")}
            rows.append({**named, "windows": windows, **values})
        return rows

    def anytime(self) -> list[dict[str, Any]]:
        """A row a model that scored requests of a champion's, over all final windows: `role`, `model`, `version`,
        `champion` (its model and version) and what `AnytimeDifference.row` has. It may be looked at at any time."""
        return [{**_pair(*pair), **test.row()} for pair, test in _ordered(self._anytime)]

    def split(self) -> list[dict[str, Any]]:
        """A row a challenger that answered requests in windows in which a champion answered others: `role`, `model`,
        `version`, `champion`, what `SplitTraffic.row` has, and `arms`: the champion's row and the challenger's, each
        with `role`, `model`, `version` and what `SplitTraffic.arms` has. It may be looked at at any time."""
        rows = []
        for pair, traffic in _ordered(self._splits):
            if not traffic.windows:
                continue
            found = traffic.row()
            since = None if found["since"] is None else moment(found["since"])
            arms = [
                {**dict(zip(STREAM, stream, strict=True)), **arm}
                for stream, arm in zip(pair[::-1], traffic.arms(), strict=True)
            ]
            rows.append({**_pair(*pair), **found, "since": since, "arms": arms})
        return rows

    def result(self) -> dict[str, Any]:
        """All that is known now, as plain values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "totals": self.totals(),
            "windows": list(self.windows),
            "anytime": self.anytime(),
            "split": self.split(),
            "differences": list(self.differences),
            "looks": list(self.looks),
            "alarms": list(self.alarms),
            "predictions": dict(self.join.predictions),
            "labels": dict(self.join.labels),
            "waiting": self.join.waiting,
            "newest": {log: None if t is None else moment(t) for log, t in self.join.newest.items()},
        }

    def state(self) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
        """All there is to go on from, as plain values and tables."""
        joined, tables = self.join.state()
        values = {
            "version": STATE_VERSION,
            "config": self.config.model_dump(mode="json"),
            "join": joined,
            "watches": [[*stream, watch.state()] for stream, watch in self._watches.items()],
            "totals": [[*stream, totals.to_json()] for stream, totals in self._totals.items()],
            "anytime": [[list(stream), list(champion), t.to_json()] for (stream, champion), t in self._anytime.items()],
            "splits": [[list(stream), list(champion), t.to_json()] for (stream, champion), t in self._splits.items()],
            "windows": self.windows,
            "differences": self.differences,
            "looks": self.looks,
            "alarms": self.alarms,
        }
        return values, tables

    def restore(self, values: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> None:
        """Goes on from what `state` returned.

        Raises:
            ArtifactError: It is of another version, or of another config: other windows cannot be gone on with.
        """
        if values.get("version") != STATE_VERSION:
            raise ArtifactError(
                "state of another version",
                field="state",
                found=values.get("version"),
                expected=STATE_VERSION,
                mend="begin anew with another state folder",
            )
        own = self.config.model_dump(mode="json")
        changed = [name for name in own if own[name] != values["config"].get(name)]
        if changed:
            raise ArtifactError(
                "state of another config",
                field=changed[0],
                found=values["config"].get(changed[0]),
                expected=own[changed[0]],
                mend="give the values it was begun with, or begin anew with another state folder",
            )
        self.join.restore(values["join"], tables)
        for *stream, watch in values["watches"]:
            self._watch(tuple(stream)).restore(watch)
        for *stream, totals in values["totals"]:
            self._totals[tuple(stream)] = StreamingMetrics.from_json(totals)
        for stream, champion, test in values["anytime"]:
            self._anytime[tuple(stream), tuple(champion)] = AnytimeDifference.from_json(test)
        for stream, champion, traffic in values["splits"]:
            self._splits[tuple(stream), tuple(champion)] = SplitTraffic.from_json(self.config, traffic)
        self.windows, self.differences = list(values["windows"]), list(values["differences"])
        self.looks, self.alarms = list(values["looks"]), list(values["alarms"])

    def _measure(self, windows: Sequence[Window]) -> int:
        for window in windows:
            streams = {
                tuple(str(name) for name in stream): _labelled(rows, self.config)
                for stream, rows in window.rows.group_by(STREAM, maintain_order=True)
            }
            for stream in streams:
                self._watch(stream)
            detectors = sum(watch.detectors() for watch in self._watches.values())
            for stream in sorted(streams, key=_order):
                self._measure_stream(window.start, stream, streams[stream], detectors)
            self._compare(window.start, streams)
            self._compare_arms(window.start, streams)
        return len(windows)

    def _measure_stream(self, start: int, stream: Stream, found: tuple[pl.DataFrame, int], detectors: int) -> None:
        rows, labelled = found
        named = {"window": moment(start), **dict(zip(STREAM, stream, strict=True))}
        y, p = rows["label"].to_numpy(), rows["probability"].to_numpy()
        metrics = evaluate(y, p)
        alarms, stability = self._watch(stream).update(rows, detectors)
        self._totals.setdefault(stream, StreamingMetrics()).update(y, p)
        self.windows.append(
            {
                **named,
                "rows": metrics["rows"],
                "labelled": labelled,
                **{name: metrics[name] for name in METRICS if name in metrics},
                "mean_prediction": float(p.mean()) if len(p) else None,
                "ece": metrics["ece"],
                "psi": stability.get("prediction"),
            }
        )
        self.alarms += [{**named, **alarm.to_json()} for alarm in alarms]

    def _compare(self, start: int, streams: Mapping[Stream, tuple[pl.DataFrame, int]]) -> None:
        """Differences to the champion where both scored the same requests."""
        champions = [stream for stream in streams if stream[0] == ROLES[0]]
        if len(champions) != 1:
            return
        champion = streams[champions[0]][0].select("key", "requested", champion="probability")
        for stream in sorted(set(streams) - set(champions), key=_order):
            both = streams[stream][0].join(champion, on=["key", "requested"], maintain_order="left")
            if not both.height:
                continue
            row: dict[str, Any] = {"window": moment(start), **dict(zip(STREAM, stream, strict=True))}
            row["rows"] = both.height
            scored = [both[name].to_numpy() for name in ("label", "probability", "champion")]
            self.differences.append(row | difference(*scored))
            pair = (stream, champions[0])
            test = self._anytime.setdefault(pair, AnytimeDifference())
            test.update(row["window"], *scored)
            self._look(start, pair, "logloss", test.row())

    def _compare_arms(self, start: int, streams: Mapping[Stream, tuple[pl.DataFrame, int]]) -> None:
        """Differences between arms where one champion and one challenger answered requests of their own."""
        champions, challengers = ([stream for stream in streams if stream[0] == role] for role in ROLES[:2])
        if len(champions) != 1 or len(challengers) != 1:
            return
        pair = (challengers[0], champions[0])
        traffic = self._splits.setdefault(pair, SplitTraffic(self.config))
        tested = traffic.update(start, streams[pair[1]][0], streams[pair[0]][0])
        if tested is not None:
            self._look(tested, pair, "label_rate", traffic.row())

    def _look(self, start: int, pair: tuple[Stream, Stream], of: str, found: Mapping[str, Any]) -> None:
        values = {"rows": found["requests" if of == "label_rate" else "rows"], "mean": found[of]}
        kept = {name: found[name] for name in ("low", "high", "verdict")}
        self.looks.append({"window": moment(start), **_pair(*pair), "of": of, **values, **kept})

    def _watch(self, stream: Stream) -> DriftWatch:
        return self._watches.setdefault(stream, DriftWatch(self.config.alarms, self._reference))


def difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Of AUC and logloss, that of `a` less that of `b` with a 95 % interval; None where there is none.

    Args:
        labels: [N] in {0, 1}.
        a: [N] probabilities.
        b: [N] probabilities of another model for the same rows.
    """
    row: dict[str, float | None] = {}
    for name, paired in (("auc", paired_auc), ("logloss", paired_logloss)):
        try:
            found = paired(labels, a, b)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        except UndefinedMetricError:
            row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return row


def moment(microseconds: int) -> str:
    """A time as text.

    >>> moment(0)
    '1970-01-01 00:00:00'
    """
    return str(datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds))


def _pair(stream: Stream, champion: Stream) -> dict[str, Any]:
    """What names a model beside a champion."""
    return {**dict(zip(STREAM, stream, strict=True)), "champion": " ".join(champion[1:])}


def _ordered(tests: Mapping[tuple[Stream, Stream], T]) -> list[tuple[tuple[Stream, Stream], T]]:
    return sorted(tests.items(), key=lambda one: (_order(one[0][0]), one[0][1]))


def _order(stream: Stream) -> tuple[int, Stream]:
    return ROLES.index(stream[0]), stream


def _labelled(rows: pl.DataFrame, config: OnlineConfig) -> tuple[pl.DataFrame, int]:
    """The rows that count, all with a label, and to how many of them one came."""
    there = rows.height - rows["label"].null_count()
    if config.unlabelled == "missing":
        return rows.drop_nulls("label"), there
    return rows.with_columns(pl.col("label").fill_null(0)), there
