"""What a client is told when it gets no scores."""

from __future__ import annotations

import math

from features.errors import RecsysError

LONGEST_MESSAGE = 600


class Refusal(Exception):
    """An answer that is no score.

    Args:
        status: The HTTP status.
        kind: What sort of refusal, one word for programs.
        message: For a person.
        field: The column or key it is about.
        retry_seconds: After so long it is worth asking again.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, field: str | None = None, retry_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.field = status, kind, field
        self.message = message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 3] + "..."
        self.retry_seconds = retry_seconds

    @classmethod
    def of(cls, error: RecsysError, *, status: int = 422) -> Refusal:
        """The refusal that says what an error says.

        >>> from features.errors import DataError
        >>> Refusal.of(DataError("not a whole number", field="user", found="'u7'")).body()
        {'error': {'type': 'invalid_value', 'field': 'user', 'message': "user: not a whole number. Found: 'u7'"}}
        """
        return cls(status, "invalid_value", str(error), field=error.field)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The answer's body."""
        return {"error": {"type": self.kind, "field": self.field, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """The answer's headers beside the usual ones."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(max(1, math.ceil(self.retry_seconds)))}
        # The rest of a body that is too large is not read.
        return headers | ({"Connection": "close"} if self.status == 413 else {})
