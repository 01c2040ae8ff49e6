"""Teaches Schemathesis to write Arrow streams; read by the process that it runs in."""

from __future__ import annotations

import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

from tests.integration.hostile import ARROW, stream, wide_rows

_ROWS = wide_rows(8, seed=7)


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(sorted(_ROWS[0])), min_size=1, unique=True))
    table = pa.Table.from_pylist(_ROWS).select(names)
    return stream(table.slice(draw(st.integers(0, 8)), draw(st.integers(0, 8))))


schemathesis.openapi.media_type(ARROW, _streams())
