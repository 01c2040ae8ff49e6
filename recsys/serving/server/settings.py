"""What a server is told: limits, keys, the prediction log."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from features.validation import Strict


class ServerSettings(Strict):
    """Settings of every worker of one server."""

    state: Path
    """Folder in which the processes of this server tell one another things."""
    parent: int
    """Process that started the workers; without it they end."""
    queue: int = Field(128, ge=1)
    """Requests a worker has in hand at a time; further ones are refused."""
    timeout_ms: int = Field(1000, ge=1)
    """Time to answer a request that gives no deadline, and the longest deadline one may give."""
    max_body_bytes: int = Field(4_000_000, ge=1)
    """Bytes of a request's body."""
    max_rows: int = Field(1000, ge=1)
    """Rows or candidates of a request, and rows scored in one go."""
    max_list: int = Field(1000, ge=1)
    """Elements of a list."""
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    """What becomes of a field that the model does not read."""
    api_keys: tuple[SecretStr, ...] = ()
    """One of them must come with every request but those for health; none: no key is asked for."""
    role: Literal["champion", "challenger"] = "champion"
    """What the prediction log says about the model."""
    challenger: str | None = None
    """Alias of the same model whose version answers a share of the requests."""
    challenger_share: float = Field(0.1, ge=0, le=1)
    """That share."""
    shadow: str | None = None
    """Alias of the same model whose version scores, unseen, what was answered."""
    shadow_sample: float = Field(1.0, ge=0, le=1)
    """Share of the requests that it scores."""
    log_sample: float = Field(1.0, ge=0, le=1)
    """Share of the requests in the prediction log."""
    log_rows: int = Field(50_000, ge=1)
    """Rows of a file of the prediction log; twice as many wait in memory at most."""
    log_seconds: float = Field(60.0, gt=0)
    """A file of the prediction log is written after so long even if it is not full."""
