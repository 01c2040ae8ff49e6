"""Event files of every kind open by their ending, and damaged ones say so."""

import gzip
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from features.errors import DataError
from features.reading.inputs import find_inputs, states
from features.reading.sources import scan

FRAME = pl.DataFrame({"user": [1, 2, 3], "city": ["a", None, "ü"]})


def write(frame, path):
    name = path.name
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    elif name.endswith(".csv"):
        frame.write_csv(path)
    elif name.endswith(".tsv"):
        frame.write_csv(path, separator="\t")
    elif name.endswith((".gz", ".zst")):
        text = frame.write_csv(separator="\t" if "tsv" in name else ",") if "sv" in name else frame.write_ndjson()
        path.write_bytes(pack(text.encode(), name))
    elif name.endswith(("ndjson", "jsonl")):
        frame.write_ndjson(path)
    else:
        frame.write_ipc(path)
    return path


def pack(data, name):
    return gzip.compress(data) if name.endswith(".gz") else pa.compress(data, "zstd", asbytes=True)


def as_read(frame, ending):
    """CSV and TSV know no types."""
    return frame.cast(pl.String) if "sv" in ending else frame


PACKED = [f"{kind}.{packing}" for kind in ("csv", "tsv", "ndjson", "jsonl") for packing in ("gz", "zst")]
ENDINGS = ["parquet", "csv", "tsv", "ndjson", "jsonl", "arrow", "ipc", "feather", *PACKED]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind(tmp_path, ending):
    assert scan(write(FRAME, tmp_path / f"e.{ending}")).collect().equals(as_read(FRAME, ending))


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "tsv.gz"])
def test_text_stays_as_the_file_has_it(tmp_path, ending):
    frame = pl.DataFrame({"zip": ["01234", None, "", "1e3", "NULL"], "flag": ["true", "0", "1", "nan", None]})
    assert scan(write(frame, tmp_path / f"e.{ending}")).collect().equals(frame)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_glob_in_the_order_of_names(tmp_path, ending):
    for day in (2, 1, 3):
        write(FRAME.with_columns(user=pl.lit(day)), tmp_path / f"day-{day}.{ending}")
    found = scan(tmp_path / f"day-*.{ending}").collect()
    assert found["user"].cast(pl.Int64).to_list() == [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file(tmp_path, ending):
    (tmp_path / f"e.{ending}").write_bytes(b"")
    with pytest.raises(DataError, match="file is empty"):
        scan(tmp_path / f"e.{ending}")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_truncated_file(tmp_path, ending):
    path = write(FRAME, tmp_path / f"e-2.{ending}")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="damaged"):
        scan(path)
    write(FRAME, tmp_path / f"e-1.{ending}")
    with pytest.raises(DataError, match="damaged"):
        scan(tmp_path / f"e-*.{ending}")


def test_a_missing_file_with_its_nearest(tmp_path):
    write(FRAME, tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"did you mean 'events\.parquet'"):
        scan(tmp_path / "event.parquet")
    with pytest.raises(DataError, match="file is missing"):
        scan(tmp_path / "no" / "where.csv")
    with pytest.raises(DataError, match="no file matches"):
        scan(tmp_path / "*.csv")


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "e.xlsx").write_text("x")
    with pytest.raises(DataError, match="unknown ending"):
        scan(tmp_path / "e.xlsx")
    with pytest.raises(DataError, match=r"e\.xlsx: unknown ending"):
        scan(tmp_path)
    write(FRAME, tmp_path / "a.csv")
    write(FRAME, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="several kinds"):
        scan(tmp_path / "a.*[vt]")
    (tmp_path / "none" / "_logs").mkdir(parents=True)
    with pytest.raises(DataError, match="no file in the folder"):
        scan(tmp_path / "none")
    write(FRAME, tmp_path / "none" / "_logs" / "a.csv")
    with pytest.raises(DataError, match=r"no file in the folder. Found: only .*a.csv, which begin with"):
        scan(tmp_path / "none")


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_packed_file_is_never_read_to_its_new_end(tmp_path, ending, kept):
    whole = write(pl.DataFrame({"n": range(20_000)}), tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"e.{ending}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises((DataError, OSError), match=r"damaged|unexpected end|incomplete frame"):
        scan(tmp_path / f"e.{ending}").select(pl.len()).collect(engine="streaming")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "csv.zst"])
def test_packing_is_seen_in_the_file_not_in_its_name(tmp_path, ending):
    text = FRAME.write_csv().encode()
    for name, data in (("1.csv", text), ("2.csv", pack(text, "gz")), ("3.csv", pack(text, "zst"))):
        (tmp_path / name.replace("csv", ending)).write_bytes(data)
    assert scan(tmp_path / f"*.{ending}").collect().equals(pl.concat([FRAME.cast(pl.String)] * 3))


def test_a_folder_with_all_below_it_but_what_is_hidden(tmp_path):
    for name in ("b/2.csv", "a/1.csv.gz", "_SUCCESS", ".part.csv.crc", "b/_temporary/3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        day = FRAME.with_columns(user=pl.lit(name[-5:] if "csv" in name else name))
        write(day, tmp_path / name) if name.endswith(("csv", "gz")) else (tmp_path / name).write_text("")
    assert scan(tmp_path).collect()["user"].to_list() == ["sv.gz"] * 3 + ["2.csv"] * 3
    left_out = [str(Path(name).relative_to(tmp_path)) for name in find_inputs(tmp_path).left_out]
    assert left_out == [".part.csv.crc", "_SUCCESS", "b/_temporary/3.csv"]
    assert find_inputs(f"{tmp_path}/**/*.csv").files == (str(tmp_path / "b/2.csv"),)


@pytest.mark.parametrize("ending", ["parquet", "csv", "ndjson", "arrow", "csv.gz"])
def test_folders_named_by_a_key_are_a_column_of_text(tmp_path, ending):
    days = {
        "day=2024-01-02/shop=02": 2,
        "day=2024-01-01/shop=a%3Ab": 1,
        "day=2024-01-03/shop=" + "__HIVE_DEFAULT_PARTITION__": 3,
    }
    for folder, user in days.items():
        (tmp_path / folder).mkdir(parents=True)
        write(pl.DataFrame({"user": [user]}), tmp_path / folder / f"part-0.{ending}")
    wanted = {"day": ["2024-01-01", "2024-01-02", "2024-01-03"], "shop": ["a:b", "02", None]}
    for path in (tmp_path, f"{tmp_path}/**/*.{ending}", f"{tmp_path}/day=*/shop=*/part-*.{ending}"):
        found = scan(path).collect(engine="streaming")
        assert found.columns == ["user", "day", "shop"]
        assert found.select("day", "shop").to_dict(as_series=False) == wanted
        assert found["user"].cast(pl.Int64).to_list() == [1, 2, 3]
    one = scan(tmp_path / "day=2024-01-02/shop=02" / f"part-0.{ending}").collect()
    assert one.select("day", "shop").row(0) == ("2024-01-02", "02")


def test_a_column_in_the_files_goes_before_that_of_the_folder(tmp_path):
    (tmp_path / "user=9").mkdir()
    write(FRAME, tmp_path / "user=9" / "e.parquet")
    assert scan(tmp_path).collect().equals(FRAME)
    write(FRAME, tmp_path / "f.parquet")
    with pytest.raises(DataError, match="folders have other keys"):
        scan(tmp_path)


def test_names_that_look_like_patterns(tmp_path):
    for ending in ("csv", "parquet", "ndjson"):
        assert scan(write(FRAME, tmp_path / f"a[1].{ending}")).collect().height == 3


def test_versions_of_a_delta_table(tmp_path):
    pytest.importorskip("deltalake")
    table = tmp_path / "table"
    FRAME.write_delta(table)
    first = states(find_inputs(table))
    FRAME.tail(1).write_delta(table, mode="append")
    assert scan(table).collect().height == 4
    assert scan(f"{table}@v0").collect().equals(FRAME)
    assert states(find_inputs(f"{table}@v0")) == first != states(find_inputs(table))
    with pytest.raises(DataError, match="version 7"):
        scan(f"{table}@v7")
    (tmp_path / "none" / "_delta_log").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read as a Delta table"):
        scan(tmp_path / "none")


def test_a_delta_table_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "_delta_log").mkdir()
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(DataError, match=r"needs the package deltalake.*pip install 'recsys-embeddings\[delta\]'"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("ending", "data", "words"),
    [
        ("csv", b"a,a\n1,2\n", "header names a column twice. Found: a"),
        ("csv", b"a,b\r1,2\r", "carriage return"),
        ("csv", b'{"a": 1, "b": 2}\n', "holds JSON.*rename the file to .ndjson"),
        ("csv", b"a\tb\n1\t2\n", "one single column.*use .csv for commas"),
        ("tsv", b"a,b\n1,2\n", "one single column"),
        ("csv", "a,b\n1,ü\n".encode("utf-16"), "damaged or not what its ending says"),
        ("csv.gz", gzip.compress(b""), "damaged or not"),
        ("parquet", b"a,b\n1,2\n", "damaged or not"),
        ("arrow", b"a,b\n1,2\n", "damaged or not"),
        ("ndjson", b"a,b\n1,2\n", "damaged or not"),
        ("ndjson", b'\xef\xbb\xbf{"a": 1}\n', "damaged or not"),
    ],
)
def test_what_is_not_what_it_says(tmp_path, ending, data, words):
    (tmp_path / f"e.{ending}").write_bytes(data)
    with pytest.raises(DataError, match=words):
        scan(tmp_path / f"e.{ending}")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa,b\n1,x\n2,y\n",
        b"a,b\r\n1,x\r\n2,y\r\n",
        b"a,b\r\n1,x\n2,y\r\n",
        b'a,b\n1,"x"\r\n2,y',
    ],
)
def test_byte_order_mark_and_line_ends(tmp_path, data):
    (tmp_path / "e.csv").write_bytes(data)
    assert scan(tmp_path / "e.csv").collect().to_dict(as_series=False) == {"a": ["1", "2"], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"city": ["a"], "user": [1]}, "another order"),
        ({"user": [1]}, "it lacks city"),
        ({"user": [1], "city": ["a"], "zip": [1]}, "it also has zip"),
        ({"user": [1.5], "city": ["a"]}, r"of another type user \(Float64, not Int64\)"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "parquet", "arrow"])
def test_files_whose_columns_differ(tmp_path, ending, other, words):
    write(FRAME, tmp_path / f"1.{ending}")
    write(pl.DataFrame(other), tmp_path / f"2.{ending}")
    typed = ending in ("parquet", "arrow")
    if ("type" in words and not typed) or ("order" in words and typed):
        assert scan(tmp_path).collect().height == 4
    else:
        with pytest.raises(DataError, match=rf"2\.{ending}: its columns are not those of .*1\.{ending}.*{words}"):
            scan(tmp_path)


def test_json_lines_may_have_keys_of_their_own(tmp_path):
    (tmp_path / "1.ndjson").write_text('{"a": 1}\n')
    (tmp_path / "2.jsonl").write_text('{"b": "x", "a": 1.5}\n\n{"a": null}')
    assert scan(tmp_path).collect().to_dict(as_series=False) == {"a": [1, 1.5, None], "b": [None, "x", None]}
    (tmp_path / "3.jsonl").write_text('{"a": [1]}\n')
    with pytest.raises(DataError, match="types of a key differ"):
        scan(tmp_path)


def test_the_state_of_files_tells_of_every_change(tmp_path):
    write(FRAME, tmp_path / "a.csv")
    first = states(find_inputs(tmp_path))
    write(FRAME, tmp_path / "b.csv.gz")
    second = states(find_inputs(tmp_path))
    assert set(second) - set(first) == {str(tmp_path / "b.csv.gz")}
    write(FRAME.head(1), tmp_path / "a.csv")
    assert states(find_inputs(tmp_path))[str(tmp_path / "a.csv")] != first[str(tmp_path / "a.csv")]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files with byte ranges, as object stores and web servers do."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        first, last = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        return self.wfile.write(data[start:stop])


@pytest.fixture
def web(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Ranges(*a, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "ndjson.zst", "arrow"])
def test_a_file_of_a_web_server(tmp_path, web, ending):
    write(FRAME, tmp_path / f"e.{ending}")
    assert scan(f"{web}/e.{ending}").collect().equals(as_read(FRAME, ending))


def test_the_state_of_a_file_of_a_web_server(tmp_path, web):
    pytest.importorskip("obstore")
    write(FRAME, tmp_path / "e.csv")
    url = f"{web}/e.csv"
    before = states(find_inputs(url))
    assert before[url][0] == (tmp_path / "e.csv").stat().st_size
    write(FRAME.head(1), tmp_path / "e.csv")
    assert states(find_inputs(url)) != before


UNREACHABLE = {
    "aws_endpoint_url": "http://127.0.0.1:1",
    "aws_allow_http": "true",
    "aws_access_key_id": "k",
    "aws_secret_access_key": "hush",
    "aws_region": "x",
}


def test_urls_that_cannot_be_read(tmp_path, web):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read.*404"):
        scan(f"{web}/none.csv")
    with pytest.raises(DataError, match=r"cannot be read.*check the address, the network") as error:
        scan("s3://bucket/e.csv", storage_options=UNREACHABLE)
    assert "hush" not in str(error.value)
    with pytest.raises(DataError, match="unknown ending"):
        scan("s3://bucket/logs/")
    for url in ("https://me:hush@host/e.csv", "https://host/e.csv?X-Amz-Signature=hush", "https://host/e.csv?sig=hush"):
        with pytest.raises(DataError, match="a secret in an address") as error:
            scan(url)
        assert "hush" not in str(error.value)


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a local S3 server in a process of its own: its address, client and options."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server", reason="the S3 server of the tests: pip install 'moto[server]'")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = next(line.strip() for line in process.stdout if line.startswith("http"))
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="events")
    yield client, {"aws_endpoint_url": address, "aws_region": "us-east-1", "aws_allow_http": "true", **keys}
    process.stdin.close()
    process.wait()


def test_a_bucket(tmp_path, bucket):
    client, options = bucket
    for name in ("logs/day=1/a.csv.gz", "logs/day=2/b.csv.gz", "logs/day=1/a.parquet"):
        client.upload_file(str(write(FRAME, tmp_path / Path(name).name)), "events", name)
    wanted = pl.concat([FRAME.cast(pl.String).with_columns(day=pl.lit(day)) for day in "12"])
    for pattern in ("s3://events/logs/**/*.csv.gz", "s3://events/logs/day=*/*.csv.gz"):
        assert scan(pattern, storage_options=options).collect().equals(wanted)
    assert scan("s3://events/logs/day=1/a.parquet", storage_options=options).collect().height == 3
    with pytest.raises(DataError, match="cannot be read"):
        scan("s3://events/logs/none.parquet", storage_options=options)


def test_the_state_of_a_bucket_and_a_delta_table_in_it(tmp_path, bucket):
    pytest.importorskip("obstore")
    pytest.importorskip("deltalake")
    client, options = bucket
    pattern = find_inputs("s3://events/parts/**/*.csv")
    client.upload_file(str(write(FRAME, tmp_path / "a.csv")), "events", "parts/x/a.csv")
    before = states(pattern, options)
    assert list(before) == ["s3://events/parts/x/a.csv"]
    client.upload_file(str(write(FRAME.head(1), tmp_path / "a.csv")), "events", "parts/x/a.csv")
    assert states(pattern, options) != before
    FRAME.write_delta("s3://events/table", storage_options=options)
    assert scan("s3://events/table", storage_options=options).collect().equals(FRAME)
    assert scan("s3://events/table@v0", storage_options=options).collect().height == 3
