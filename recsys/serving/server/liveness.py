"""Whether a process that left something behind is still there."""

from __future__ import annotations

import os


def lives(process: int) -> bool:
    """Whether there is a process of this number.

    >>> lives(os.getpid())
    True
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
