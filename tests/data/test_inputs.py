"""Raw files from anywhere, packed in any way: the same bytes; what is damaged or secret."""

from __future__ import annotations

import bz2
import gzip
import http.server
import lzma
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from distdl.data.inputs import find_files, open_bytes
from distdl.data.prepare import prepare_dataset
from distdl.data.raw import open_raw
from distdl.data.store import shown
from distdl.data.unpack import without_ending
from distdl.errors import InputError

TEXT = b"a,b,y\n" + b"".join(b"%d,%d,%s\n" % (i, i * i % 97, b"no" if i % 3 else b"yes") for i in range(5000))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, in ranges where they are asked for, to those who know the password."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/secret") and "sig=right" not in self.path:
            self.send_error(403)
            return
        file = Path(self.directory) / self.path.split("?")[0].lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        whole = file.read_bytes()
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, end = int(asked[0] or 0), int(asked[2] or len(whole) - 1)
        part = whole[start : end + 1]
        self.send_response(206 if asked[0] else 200)
        self.send_header("Accept-Ranges", "bytes")
        if asked[0]:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server of `tmp_path`."""
    handler = lambda *args: Quiet(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pack(path: Path, kind: str, content: bytes) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("folder/table.csv", content)
            archive.writestr("__MACOSX/folder/._table.csv", b"a Mac's notes")
    elif kind == "zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(content)
    else:
        packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(kind, bytes)(content)
        path.write_bytes(packed)


@pytest.mark.parametrize("kind", ["plain", "gz", "bz2", "xz", "zst", "zip"])
def test_packed_files_are_told_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    pack(tmp_path / f"t.csv.{kind}", kind, TEXT)
    pack(tmp_path / "t.csv", kind, TEXT)  # without the ending
    for name in (f"t.csv.{kind}", "t.csv"):
        with open_raw(tmp_path / name) as file:
            assert file.read(10) == TEXT[:10] and file.readline() == TEXT[10 : TEXT.index(b"\n", 10) + 1]
            assert file.read() == TEXT[TEXT.index(b"\n", 10) + 1 :]
    assert without_ending("t.csv.ZIP") == "t.csv" and without_ending("t.csv") == "t.csv"


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_damaged_packed_files_are_named(tmp_path: Path, kind: str) -> None:
    pack(tmp_path / "whole", kind, TEXT)
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / f"t.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"t\.{kind} is a damaged (gzip|bzip2|xz|zstandard|zip) file") as error:
        open_raw(tmp_path / f"t.{kind}").read()
    assert "download it again" in str(error.value)
    (tmp_path / f"text.{kind}").write_bytes(TEXT)
    with pytest.raises(InputError, match="it begins with the bytes 61 2c 62 2c"):
        open_raw(tmp_path / f"text.{kind}")


def test_an_archive_of_several_files_names_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "1")
        archive.writestr("b.csv", "2")
    with pytest.raises(InputError, match=r"t\.zip holds 2 files: a\.csv, b\.csv"):
        open_raw(tmp_path / "t.zip")


def test_files_by_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("d/b.csv", "d/a.CSV", "d/deep/c.csv", "d/_SUCCESS", "d/.x.csv", "d/_tmp/d.csv", "d/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = lambda found: [str(Path(f).relative_to(tmp_path / "d")) for f in found]  # noqa: E731
    assert names(find_files(tmp_path / "d", (".csv",))) == ["a.CSV", "b.csv", "deep/c.csv"]
    assert names(find_files(f"{tmp_path}/d/*.csv", (".csv",))) == ["b.csv"]
    uri = f"file://{tmp_path}/d"
    assert find_files(uri, (".csv",)) == [f"{uri}/{name}" for name in ("a.CSV", "b.csv", "deep/c.csv")]
    assert find_files(f"{uri}/deep/*.csv", (".csv",)) == [f"{uri}/deep/c.csv"]
    for path, match in (
        ("none", "there is no file"),
        ("*.txt", "no file fits the pattern"),
        ("d/deep", "no file with"),
    ):
        with pytest.raises(InputError, match=match):
            find_files(f"{tmp_path}/{path}", (".txt",))


def test_http(tmp_path: Path, site: str) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "t.csv").write_bytes(TEXT)
    for name in ("t.csv", "t.csv.gz"):
        with open_raw(f"{site}/{name}") as file:
            assert file.read() == TEXT
    local = prepare_dataset("csv", tmp_path / "a", {"path": f"{tmp_path}/t.csv", "label": "y"})
    remote = prepare_dataset("csv", tmp_path / "b", {"path": f"{site}/t.csv.gz", "label": "y"})
    assert local.splits == remote.splits
    with pytest.raises(InputError, match=r"there is no file http.*none\.csv"):
        open_raw(f"{site}/none.csv")


def test_a_secret_in_a_uri_is_neither_printed_nor_kept(tmp_path: Path, site: str) -> None:
    (tmp_path / "secret.csv").write_bytes(TEXT)
    place = f"{site}/secret.csv?sig=right"
    manifest = prepare_dataset("csv", tmp_path / "a", {"path": place, "label": "y"})
    assert "right" not in (tmp_path / "a" / "manifest.json").read_text()
    assert manifest.options["path"] == f"{site}/secret.csv?…"
    for bad in (
        place.replace("right", "hidden"),
        f"http://me:hidden@127.0.0.1:1/{'x' * 5}.csv",
        "no://me:hidden@x/y",
        "zip://a.csv",
    ):
        with pytest.raises(InputError) as error:
            open_bytes(bad)
        assert "hidden" not in str(error.value) and "://" in str(error.value)
    (tmp_path / "secret.csv").write_bytes(TEXT + b"1,2,no,4\n")
    with pytest.raises(InputError, match=r"secret\.csv") as error:
        prepare_dataset("csv", tmp_path / "c", {"path": f"{site}/secret.csv?sig=right", "label": "y"})
    assert "right" not in str(error.value)
    assert shown("s3://key:a/b+c@bucket/x.csv?region=r: broken") == "s3://bucket/x.csv?… broken"
    assert shown("hf://datasets/me/set@main/x.csv") == "hf://datasets/me/set@main/x.csv"
    assert shown("/a/b?c=d@e") == "/a/b?c=d@e"


def test_s3(tmp_path: Path) -> None:
    moto = pytest.importorskip("moto.server", reason="moto[s3] is not installed")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="hidden",
        )
        store.create_bucket(Bucket="tables")
        for name, content in (("t/1.csv.gz", gzip.compress(TEXT)), ("t/2.csv", TEXT), ("t/_SUCCESS", b"")):
            store.put_object(Bucket="tables", Key=name, Body=content)
        end = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        root = "s3://key:hidden@tables"
        assert find_files(f"{root}/t{end}", (".csv", ".csv.gz")) == [
            f"{root}/t/{name}{end}" for name in ("1.csv.gz", "2.csv")
        ]
        assert find_files(f"{root}/t/*.csv{end}", ()) == [f"{root}/t/2.csv{end}"]
        with open_raw(f"{root}/t/1.csv.gz{end}") as file:
            assert file.read() == TEXT
        with pytest.raises(InputError) as error:
            open_raw(f"{root}/t/none.csv{end}")
        assert "there is no file s3://tables/t/none.csv" in str(error.value) and "hidden" not in str(error.value)
    finally:
        server.stop()
