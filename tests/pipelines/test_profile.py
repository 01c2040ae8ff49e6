"""What `recsys profile` and `recsys init` make of a source: suggestions, page, config; and what they refuse."""

import base64
import datetime
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError, DataError, RecsysError
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.init import init
from pipelines.profile import profile, study

ROWS = 2000
QUIET = Console(quiet=True)


def shop():
    """One column for every rule."""
    rng = np.random.default_rng(0)
    user, clicked = rng.integers(0, 150, ROWS), rng.integers(0, 2, ROWS)
    return pl.DataFrame(
        {
            "event": [f"{place:016x}" for place in range(ROWS)],
            "user_id": user,
            "shelf": [int(x) for x in rng.permutation(100)[rng.integers(0, 100, ROWS)]],
            "big": user * 10**12,
            "zip": [f"{code:05d}" for code in rng.integers(0, 900, ROWS)],
            "cents": rng.integers(0, 5000, ROWS),
            "tail": np.exp(2 * rng.normal(size=ROWS)),
            "wave": np.where(clicked == 1, 0.3, 1.0) * rng.normal(size=ROWS),
            "written": [None if place % 9 == 0 else f"{x:.3f}" for place, x in enumerate(rng.normal(size=ROWS))],
            "stars": [None if x == 5 else float(x) for x in rng.integers(1, 6, ROWS)],
            "mobile": rng.random(ROWS) < 0.5,
            "genres": ["|".join(sorted({f"g{x}" for x in rng.integers(0, 6, 3)})) for _ in range(ROWS)],
            "tags": [[f"t{x}" for x in rng.integers(0, 9, place % 4)] for place in range(ROWS)],
            "picture": pl.Series(rng.normal(size=(ROWS, 3)), dtype=pl.Array(pl.Float32, 3)),
            "ragged": [[0.5] * (place % 3) for place in range(ROWS)],
            "at": [datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=9 * place) for place in range(ROWS)],
            "joined_at": [1_700_000_000 - 3600 * int(x) for x in rng.integers(1, 900, ROWS)],
            "title": [" ".join(f"word{x}" for x in rng.integers(0, 50, 4)) for _ in range(ROWS)],
            "left": [datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=9 * x + 3) for x in range(ROWS)],
            "paid after": clicked * 3.5 + rng.random(ROWS),
            "nested": [{"a": 1}] * ROWS,
            "nothing": [None] * ROWS,
            "same": ["x"] * ROWS,
            "clicked": clicked,
        }
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("shop") / "shop.parquet"
    shop().write_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def found(source):
    return study(source, QUIET)


def test_every_column_gets_the_operator_that_fits_it(found):
    entries = {
        item.column: [{key: value for key, value in entry.items() if key != "name"} for entry in item.features]
        for item in found.suggestions
    }
    assert entries["user_id"] == [{"type": "id", "dtype": "integer"}]
    assert entries["big"] == [{"type": "id", "dtype": "integer"}]
    assert entries["zip"] == [{"type": "id"}]
    assert entries["cents"] == [{"type": "number", "standardise": True}]
    assert entries["tail"] == [{"type": "number", "clip": [0, None], "log": 1, "standardise": True}]
    assert entries["wave"] == [{"type": "bucket", "quantiles": 20}]
    assert entries["written"] == [{"type": "number", "standardise": True, "missing_flag": True}]
    assert entries["stars"] == [{"type": "id", "dtype": "integer"}]
    assert entries["mobile"] == [{"type": "id", "dtype": "boolean"}]
    assert entries["genres"] == [{"type": "ids", "separator": "|", "pooling": "mean"}]
    assert entries["tags"] == [{"type": "ids", "dtype": "string", "pooling": "mean"}]
    assert entries["picture"] == [{"type": "vector", "size": 3}]
    parts = [{"type": "time", "column": "at", "part": part} for part in ("hour", "weekday")]
    assert entries["at"] == parts
    assert entries["joined_at"] == [{"type": "recency", "unit": "s"}]
    assert entries["title"] == [{"type": "ngrams"}]
    dropped = {item.column: item.reason for item in found.suggestions if item.operator == "drop"}
    assert set(dropped) == {"event", "ragged", "left", "paid after", "nested", "nothing", "same"}
    assert dropped["same"] == "constant"
    assert "predicts the label too well" in dropped["paid after"]
    assert "Struct" in dropped["nested"]
    assert "later than the event in 100.0% of the rows" in dropped["left"]


def test_small_fields_are_exact_and_larger_ones_share(found):
    places = {item.column: (item.region, item.chunks) for item in found.suggestions}
    assert places["mobile"] == ("exact", 1)
    assert places["zip"] == ("shared", 1)
    assert places["cents"] == (None, 0)
    assert places["joined_at"] == ("exact", 1)
    assert places["title"] == ("shared", 2)
    shared = sum(item.values for item in found.suggestions if item.region == "shared")
    assert shared / 2 <= found.table.rows < 1.1 * shared / 2
    exact = sum(item.values for item in found.suggestions if item.region == "exact")
    assert found.table.bytes == (found.table.rows + exact) * found.table.width * 4 + 4 * exact


class Page(HTMLParser):
    """What a browser would load, and whether every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_the_json_says_the_same(source, tmp_path):
    result = profile(source, QUIET, out=tmp_path)
    text = (tmp_path / "profile.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.scripts == 0
    assert page.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    for address in page.addresses:
        ElementTree.fromstring(base64.b64decode(address.split(",", 1)[1]))
    assert "prefers-color-scheme:dark" in text
    assert re.search(r"<td>paid after</td>", text)
    data = json.loads((tmp_path / "profile.json").read_text())
    said = {key: value for key, value in result.items() if key not in ("out", "json", "html")}
    assert data == json.loads(json.dumps(said))
    columns = {column["name"]: column for column in data["columns"]}
    assert (data["rows"], data["label"], data["time"], data["group"]) == (ROWS, "clicked", "at", "user_id")
    assert data["positives"] == pytest.approx(shop().get_column("clicked").mean())
    assert columns["paid after"]["suspicious"]
    assert columns["same"]["suggestion"]["operator"] == "drop"


def test_names_that_html_yaml_and_the_spec_do_not_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    names = ["<b>x</b>", "yes", "a b", "a_b", 'q"uo#te: {1}', "größe $5$", "12"]
    frame = pl.DataFrame({name: [f"<i>{x}\x01&$" for x in rng.integers(0, 9, 300)] for name in names})
    frame.with_columns(label=pl.Series(rng.integers(0, 2, 300))).write_parquet("odd.parquet")
    profile("odd.parquet", QUIET, out=tmp_path / "page")
    text = (tmp_path / "page" / "profile.html").read_text()
    assert "<b>x</b>" not in text
    for svg in re.findall(r"base64,([^\"]+)", text):
        ElementTree.fromstring(base64.b64decode(svg))
    init("odd.parquet", QUIET)
    config = load_config(tmp_path / "odd.yaml")
    assert [feature.column for feature in config.spec.features] == names
    assert len({feature.name for feature in config.spec.features}) == len(names)


def test_init_writes_a_config_that_says_what_was_found(source, tmp_path):
    out = tmp_path / "shop.yaml"
    result = init(source, QUIET, out=out, name="shop")
    config = load_config(out)
    assert (config.spec.labels, config.spec.group, config.spec.time) == (["clicked"], "user_id", "at")
    assert config.data.split.kind == "time"
    assert config.data.source == source
    assert [feature.name for feature in config.spec.features] == result["features"]
    text = out.read_text()
    assert "# left out: paid after: predicts the label too well" in text
    assert set(result["dropped"]) == {"event", "ragged", "left", "paid after", "nested", "nothing", "same"}


def test_init_replaces_a_file_only_when_told(source, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("precious")
    with pytest.raises(ArtifactError, match=r"there already.*--force"):
        init(source, QUIET, out=out)
    assert out.read_text() == "precious"
    init(source, QUIET, out=out, force=True)
    assert load_config(out).name == "shop"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1, 2, 3]}, {}, r"no label was found.*a \(3 values\).*--label"),
        ({"a": [0, 1], "b": [1, 0]}, {}, "not clear.*a, b.*--label a"),
        ({"click": [1, 1], "x": [1, 2]}, {}, "no label was found"),
        ({"click": [1, 1], "x": [1, 2]}, {"label": "click"}, "one class only"),
        ({"click": [0, 1, 2]}, {"label": "click"}, "other values than 0 and 1.*0, 1, 2"),
        ({"click": [0, 1], "x": ["a", "a"]}, {}, "no column can be a feature.*x: constant"),
        ({"click": [0, 1], "x": ["a", "b"]}, {"name": "a/b"}, "name"),
        ({"click": []}, {}, "no rows"),
    ],
)
def test_init_refuses_and_leaves_nothing(tmp_path, monkeypatch, columns, options, message):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(columns).write_parquet("data.parquet")
    with pytest.raises(RecsysError, match=message):
        init("data.parquet", QUIET, out=tmp_path / "out.yaml", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


def test_a_profile_needs_no_label(tmp_path):
    pl.DataFrame({"a": ["x", "y"] * 50, "b": range(100)}).write_csv(tmp_path / "data.csv")
    result = profile(str(tmp_path / "data.csv"), QUIET, out=tmp_path / "page")
    assert result["label"] is None
    assert [column["reading"] for column in result["columns"]] == [None, "integer"]
    with pytest.raises(DataError, match="column is missing"):
        profile(str(tmp_path / "data.csv"), QUIET, out=tmp_path / "page", label="c")
