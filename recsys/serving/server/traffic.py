"""Which requests the challenger answers: a share of them, by their ids."""

from __future__ import annotations

import logging

from prometheus_client import CollectorRegistry, Counter, Gauge

from recsys.serving.server.announcement import CHALLENGER
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shares import in_share
from recsys.serving.server.version_metrics import VersionMetrics
from recsys.serving.server.watcher import ModelWatcher

_SEED = 1
"""The share is independent of the samples of the prediction log and the shadow, whose seed is 0."""

logger = logging.getLogger(__name__)


class TrafficSplit:
    """Deals requests between the served model and a challenger.

    A request goes the same way as often as it comes, while there is a challenger that can take the champion's place.
    Else the champion answers.

    Args:
        settings: The challenger's share, and where it is announced.

    Attributes:
        watcher: Holds the challenger.
    """

    def __init__(self, settings: ServerSettings) -> None:
        own = CollectorRegistry()
        self._share, self._refuse_unknown = settings.challenger_share, settings.unknown_fields == "refuse"
        self._requests = Counter("recsys_challenger_requests", "Requests dealt to the challenger.", registry=own)
        self._failures = Counter(
            "recsys_challenger_failures",
            "Requests on which the challenger failed, so that the champion answered.",
            registry=own,
        )
        self._misfit = Gauge(
            "recsys_challenger_misfit",
            "1 if the challenger reads or gives other fields than the champion, so that it answers nothing.",
            multiprocess_mode="livemax",
            registry=own,
        )
        self.watcher = ModelWatcher(settings, VersionMetrics(own, CHALLENGER), beside=CHALLENGER)
        self._judged: tuple[object, object] | None = None
        self._fits = False

    def deal(self, champion: ServedModel, request_id: str) -> ServedModel:
        """The model that answers a request."""
        challenger = self.watcher.model
        if challenger is None:
            if self._judged is not None:
                self._judged = None
                self._misfit.set(0)
            return champion
        if not in_share(request_id, self._share, seed=_SEED):
            return champion
        # Not the models themselves, which would be kept in memory after a swap.
        pair = (champion.announcement.model, challenger.announcement.model)
        if pair != self._judged:
            self._judged, self._fits = pair, self._judge(champion, challenger)
        if not self._fits:
            return champion
        self._requests.inc()
        return challenger

    def failed(self) -> None:
        """Counts a request on which the challenger failed."""
        self._failures.inc()

    def _judge(self, champion: ServedModel, challenger: ServedModel) -> bool:
        problem = misfit(champion, challenger, refuse_unknown=self._refuse_unknown)
        self._misfit.set(problem is not None)
        if problem is not None:
            logger.error("version %s answers nothing: %s", challenger.version, problem)
        return problem is None and challenger.version != champion.version


def misfit(champion: ServedModel, challenger: ServedModel, *, refuse_unknown: bool) -> str | None:
    """Why a challenger cannot answer what is asked of a champion; None if it can.

    Args:
        champion: What clients know.
        challenger: Takes its place for some requests.
        refuse_unknown: Whether a request with a field that the model does not read is refused.
    """
    if challenger.outputs != champion.outputs:
        return f"it gives {', '.join(challenger.outputs)}, and the champion {', '.join(champion.outputs)}"
    for column, kind in champion.types.items():
        own = challenger.types.get(column)
        if own is None and refuse_unknown:
            return f"it does not read {column}, and unknown fields are refused"
        if own is not None and own != kind:
            return f"it reads {column} as {own}, and the champion as {kind}"
    return None
