"""Which requests belong to a share of all: decided by their ids alone, so that every server decides alike."""

from __future__ import annotations

import xxhash

_SPAN = 1 << 32


def in_share(request_id: str, share: float, *, seed: int = 0) -> bool:
    """Whether a request belongs to a share of the requests; what is in a small share is in every larger one.

    Args:
        request_id: Its id.
        share: From 0 to 1.
        seed: Shares with different seeds are independent.

    >>> [sum(in_share(str(i), share) for i in range(1000)) for share in (0.0, 0.1, 1.0)]
    [0, 96, 1000]
    """
    return xxhash.xxh32_intdigest(request_id.encode(), seed) < round(share * _SPAN)
