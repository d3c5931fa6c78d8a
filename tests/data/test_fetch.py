"""`distdl data fetch` against a server of our own that breaks off, lies, dawdles and resumes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shlex
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from distdl.data.catalogue import entry
from distdl.data.fetch import classics as catalogue
from distdl.data.fetch.classics import Classic, File, Mend, Unpack, classics, find
from distdl.data.fetch.download import Patience, download
from distdl.data.fetch.folder import fetch
from distdl.data.manifest import read_manifest
from distdl.data.prepare import parse_options, source_names
from distdl.errors import DataCorrupt, DistdlError, InputError
from tests.conftest import Result
from tests.data.published_files import PUBLISHED

Command = Callable[..., Result]
BYTES = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
HURRIED = Patience(silence_s=0.5, slow_bytes_per_s=1e6, slow_after_s=0.1, tries=3, pause_s=0.0)


@dataclass
class Server:
    """What is served, how, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers end early."""
    ranges: bool = True
    length: bool = True
    dawdles: bool = False
    """It sends a few bytes now and then."""
    status: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range."""
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server.told  # type: ignore[attr-defined]
        wanted = self.headers.get("Range", "")
        server.asked.append((self.path, wanted))
        assert self.headers["User-Agent"].startswith("distdl/") and self.headers["Accept-Encoding"] == "identity"
        if server.status or self.path not in server.files:
            self.send_error(server.status or 404)
            return
        content, begin = server.files[self.path], 0
        if wanted and server.ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = begin + server.breaks_after.pop(0) if server.breaks_after else len(content)
        if server.dawdles:
            for at in range(begin, end, 100):
                self.wfile.write(content[at : at + 100])
                if threading.Event().wait(0.02):
                    return
        else:
            self.wfile.write(content[begin:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    running = []

    def start(**told: object) -> Server:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.told = Server(**told, url=f"http://127.0.0.1:{server.server_port}")  # type: ignore[arg-type,attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return server.told  # type: ignore[attr-defined]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def file(name: str, content: bytes, *urls: str, kind: str = "sha256", size: bool = True) -> File:
    return File(name, urls, kind, hashlib.new(kind, content).hexdigest(), len(content) if size else 0)


def get(told: File, folder: Path, patience: Patience = HURRIED) -> list[str]:
    """What was said on the way."""
    said: list[str] = []
    download(told, folder, told.urls, lambda size: None, said.append, patience)
    assert not (folder / f"{told.name}.part").exists()
    return said


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@pytest.mark.parametrize("size", [True, False])
def test_a_file_comes_as_it_was_published(
    tmp_path: Path, servers: Callable[..., Server], kind: str, size: bool
) -> None:
    server = servers(files={"/a.bin": BYTES})
    assert get(file("a.bin", BYTES, f"{server.url}/a.bin", kind=kind, size=size), tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BYTES and server.asked == [("/a.bin", "")]


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path: Path, servers: Callable[..., Server]) -> None:
    server = servers(files={"/a.bin": BYTES}, breaks_after=[100_000, 50_000])
    get(file("a.bin", BYTES, f"{server.url}/a.bin"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BYTES
    assert [wanted for _, wanted in server.asked] == ["", "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_cannot_resume_begins_again(tmp_path: Path, servers: Callable[..., Server], length: bool) -> None:
    """Nothing is appended to what was there; without a length the published size tells that it broke off."""
    server = servers(files={"/a.bin": BYTES}, breaks_after=[100_000], ranges=False, length=length)
    get(file("a.bin", BYTES, f"{server.url}/a.bin"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BYTES and len(server.asked) == 2


def test_the_next_mirror_goes_on_where_the_first_broke(tmp_path: Path, servers: Callable[..., Server]) -> None:
    first = servers(files={"/a.bin": BYTES}, breaks_after=[120_000, 0, 0, 0])
    second = servers(files={"/b/a.bin": BYTES})
    said = get(file("a.bin", BYTES, f"{first.url}/a.bin", f"{second.url}/b/a.bin"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BYTES
    assert second.asked == [("/b/a.bin", "bytes=120000-")]
    assert len(said) == 1 and "broken off after 120,000 of 300,000 bytes" in said[0] and second.url in said[0]


def test_a_slow_mirror_is_left_for_the_next_and_the_last_one_is_waited_for(
    tmp_path: Path, servers: Callable[..., Server]
) -> None:
    slow, quick = servers(files={"/a.bin": BYTES}, dawdles=True), servers(files={"/a.bin": BYTES})
    (said,) = get(file("a.bin", BYTES, f"{slow.url}/a.bin", f"{quick.url}/a.bin"), tmp_path)
    assert re.search(r"slow, [0-9.]+ kB/s", said) and quick.asked[0][1].startswith("bytes=")
    assert (tmp_path / "a.bin").read_bytes() == BYTES
    small = BYTES[:3000]
    alone = servers(files={"/s.bin": small}, dawdles=True)
    assert get(file("s.bin", small, f"{alone.url}/s.bin"), tmp_path) == []
    assert (tmp_path / "s.bin").read_bytes() == small


def test_a_mirror_with_another_file_is_never_published(tmp_path: Path, servers: Callable[..., Server]) -> None:
    """The bytes differ, or only their number: the next mirror has the right one. Where none has, it is said what was found,
    and nothing is left that a later fetch could take for the file."""
    flipped = bytearray(BYTES)
    flipped[77] ^= 1
    for content in (bytes(flipped), BYTES + b"x", b"<html>not here any more</html>"):
        liar, honest = servers(files={"/a.bin": content}), servers(files={"/a.bin": BYTES})
        (said,) = get(file("a.bin", BYTES, f"{liar.url}/a.bin", f"{honest.url}/a.bin"), tmp_path)
        assert "another file" in said and (tmp_path / "a.bin").read_bytes() == BYTES
        (tmp_path / "a.bin").unlink()
        with pytest.raises(DataCorrupt, match="is not the file that was published") as error:
            get(file("a.bin", BYTES, f"{liar.url}/a.bin"), tmp_path)
        assert hashlib.sha256(BYTES).hexdigest() in str(error.value)
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_grows_without_end_is_stopped_at_its_size(tmp_path: Path, servers: Callable[..., Server]) -> None:
    server = servers(files={"/a.bin": BYTES * 20}, length=False)
    with pytest.raises(DataCorrupt, match="of more than 300,000 bytes"):
        get(file("a.bin", BYTES, f"{server.url}/a.bin"), tmp_path)
    assert all(path.stat().st_size < 400_000 for path in tmp_path.iterdir())


def test_what_another_left_is_not_trusted(tmp_path: Path, servers: Callable[..., Server]) -> None:
    """A beginning of other bytes does not end in a wrong file, nor in a failure: all of it is fetched once more."""
    server = servers(files={"/a.bin": BYTES})
    for left in (b"other" * 1000, BYTES[:100_000] + b"z" * 200_000, BYTES + b"more"):
        (tmp_path / "a.bin.part").write_bytes(left)
        get(file("a.bin", BYTES, f"{server.url}/a.bin"), tmp_path)
        assert (tmp_path / "a.bin").read_bytes() == BYTES
    (tmp_path / "a.bin.part").write_bytes(BYTES)  # whole, but not renamed yet
    server.asked.clear()
    get(file("a.bin", BYTES, f"{server.url}/a.bin"), tmp_path)
    assert server.asked == []


def test_who_cannot_be_reached_is_named_and_what_came_is_kept(tmp_path: Path, servers: Callable[..., Server]) -> None:
    broken, gone = servers(files={"/a.bin": BYTES}, breaks_after=[40_000, 0, 0, 0]), servers()
    busy = servers(status=503)
    urls = (f"{broken.url}/a.bin", f"{gone.url}/a.bin", f"{busy.url}/a.bin", "http://127.0.0.1:9/a.bin")
    with pytest.raises(DistdlError) as error:
        get(file("a.bin", BYTES, *urls), tmp_path)
    told = str(error.value)
    assert error.value.exit_code == 1 and "40,000 bytes of it are kept" in told
    assert "HTTP 404" in told and "HTTP 503" in told and "127.0.0.1:9" in told and "--mirror" in told
    assert (tmp_path / "a.bin.part").stat().st_size == 40_000
    assert len(busy.asked) == 2 and len(gone.asked) == 1, "a file that is not there is not asked for again"


def test_no_secret_of_a_mirror_is_printed(tmp_path: Path) -> None:
    with pytest.raises(DistdlError) as error:
        get(file("a.bin", BYTES, "http://user:geheim@127.0.0.1:9/a.bin?token=geheim"), tmp_path)
    assert "geheim" not in str(error.value)
    with pytest.raises(InputError, match="no place to fetch from"):
        get(file("a.bin", BYTES, "file:///etc/hostname"), tmp_path)


# -- a folder ----------------------------------------------------------------------------------------------------------


def archive(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def classic(*files: File, **more: object) -> Classic:
    told = {"source": "text", "options": {"path": "{dir}/a.txt", "context": 4}, **more}
    return Classic("it", "some data", "CC0", "https://example.org", "us", files, **told)  # type: ignore[arg-type]


def test_a_folder_appears_as_a_whole_and_is_known_again(tmp_path: Path, servers: Callable[..., Server]) -> None:
    server = servers(files={"/a.txt": b"ab" * 50, "/b.txt": b"cd" * 50}, status=0)
    told = classic(*(file(n, server.files[f"/{n}"], f"{server.url}/{n}") for n in ("a.txt", "b.txt")))
    (tmp_path / "there").mkdir()  # an empty one is no obstacle
    assert fetch(told, tmp_path / "there") is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    record = json.loads((tmp_path / "there" / "source.json").read_text())
    assert record["licence"] == "CC0" and record["files"][0]["sha256"] == told.files[0].checksum
    server.asked.clear()
    assert fetch(told, tmp_path / "there") is False and server.asked == []
    (tmp_path / "there" / "b.txt").write_bytes(b"cd" * 49 + b"cx")
    with pytest.raises(InputError, match=r"b.txt is not the file that was published"):
        fetch(told, tmp_path / "there")
    (tmp_path / "there" / "b.txt").unlink()
    with pytest.raises(InputError, match=r"lacks b.txt"):
        fetch(told, tmp_path / "there")


def test_a_fetch_that_failed_goes_on_with_what_it_had(tmp_path: Path, servers: Callable[..., Server]) -> None:
    server = servers(files={"/a.txt": BYTES, "/b.txt": BYTES[::-1]}, breaks_after=[len(BYTES), 70_000, 0])
    told = classic(*(file(n, server.files[f"/{n}"], f"{server.url}/{n}") for n in ("a.txt", "b.txt")))
    with pytest.raises(DistdlError, match="70,000 bytes of it are kept"):
        fetch(told, tmp_path / "it", patience=HURRIED)
    assert not (tmp_path / "it").exists()
    server.asked.clear()
    said: list[str] = []
    assert fetch(told, tmp_path / "it", say=said.append, patience=HURRIED)
    assert server.asked == [("/b.txt", "bytes=70000-")] and "370,000 bytes" in said[0]
    assert (tmp_path / "it" / "b.txt").read_bytes() == BYTES[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_archives_are_unpacked_safely(tmp_path: Path, servers: Callable[..., Server]) -> None:
    packed = archive(("x/one.txt", b"1"), ("x/deep/two.txt", b"22"), ("noise/no.txt", b"3"), ("x/left.out", b"4"))
    server = servers(files={"/p.tar.gz": packed})
    told = classic(file("p.tar.gz", packed, f"{server.url}/p.tar.gz"))
    told = replace(told, steps=(Unpack("p.tar.gz", (".txt",), "x/", "in"),))
    fetch(told, tmp_path / "it")
    names = {str(path.relative_to(tmp_path / "it")) for path in (tmp_path / "it").rglob("*") if path.is_file()}
    assert names == {"in/one.txt", "in/deep/two.txt", "source.json"}
    assert fetch(told, tmp_path / "it") is False
    (tmp_path / "it" / "in" / "one.txt").unlink()
    with pytest.raises(InputError, match=r"in/one.txt is missing"):
        fetch(told, tmp_path / "it")
    whole = replace(told, steps=(Unpack("p.tar.gz", (".txt",), without=("noise",)),))
    fetch(whole, tmp_path / "whole")
    assert (tmp_path / "whole" / "x" / "one.txt").exists() and not (tmp_path / "whole" / "noise").exists()


def test_no_name_in_an_archive_leads_out_of_the_folder(tmp_path: Path, servers: Callable[..., Server]) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as out:
        out.writestr("../../evil.txt", b"x")
    for name, packed in (("p.tar.gz", archive(("../evil.txt", b"x"))), ("p.zip", zipped.getvalue())):
        server = servers(files={f"/{name}": packed})
        told = replace(classic(file(name, packed, f"{server.url}/{name}")), steps=(Unpack(name, (".txt",)),))
        with pytest.raises(InputError, match="a place outside of it"):
            fetch(told, tmp_path / "in" / "it")
        assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "in" / "it").exists()


def test_a_file_is_mended_line_by_line(tmp_path: Path, servers: Callable[..., Server]) -> None:
    raw = b"|1x3 Cross validator\n25, Private, <=50K.\r\n38, ?, >50K.\n\n"
    server = servers(files={"/adult.test": raw})
    told = classic(file("adult.test", raw, f"{server.url}/adult.test"))
    fetch(replace(told, steps=(Mend("adult.test", "t.csv", 1, "."),)), tmp_path / "it")
    assert (tmp_path / "it" / "t.csv").read_bytes() == b"25, Private, <=50K\n38, ?, >50K\n"
    assert not (tmp_path / "it" / "adult.test").exists()


@pytest.mark.slow
def test_two_do_not_fetch_to_one_place(tmp_path: Path, servers: Callable[..., Server]) -> None:
    server = servers(files={"/a.txt": BYTES[:5_000]}, dawdles=True)
    told = classic(file("a.txt", BYTES[:5_000], f"{server.url}/a.txt"))
    first = threading.Thread(target=fetch, args=(told, tmp_path / "it"))
    first.start()
    while not server.asked:
        time.sleep(0.001)
    with pytest.raises(InputError, match="another process is fetching"):
        fetch(told, tmp_path / "it")
    first.join()
    assert (tmp_path / "it" / "a.txt").stat().st_size == 5_000


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def digits_of_mnist(monkeypatch: pytest.MonkeyPatch, servers: Callable[..., Server]) -> Server:
    """A catalogue of one data set, a small MNIST."""
    draw, files = np.random.default_rng(1), {}
    for part, rows in (("train", 50), ("t10k", 20)):
        images, labels = draw.integers(0, 256, (rows, 28, 28), np.uint8), np.arange(rows, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 2051, rows, 28, 28)
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes())
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">II", 2049, rows) + labels.tobytes())
    server = servers(files={f"/{name}": content for name, content in files.items()})
    told = replace(find("mnist"), files=tuple(file(n, c, f"{server.url}/{n}") for n, c in files.items()))
    monkeypatch.setattr(catalogue, "classics", lambda: (told,))
    return server


def test_fetch_says_what_prepares_it_and_prepares_it(
    tmp_path: Path, command: Command, digits_of_mnist: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = command("data", "fetch", "MNIST", "--quiet")
    assert code == 0, error
    assert "data/raw/mnist" in out and "licence: none stated by its authors" in out
    (line,) = re.findall(r"next: (.*)", out)
    assert shlex.split(line) == ["distdl", "data", "prepare", "idx", "data/mnist", "path=data/raw/mnist"]
    code, out, error = command(*shlex.split(line)[1:], "--quiet")
    assert code == 0, error
    code, out, error = command("data", "fetch", "mnist", "--prepare", "data/again", "--quiet")
    assert code == 0 and "was there already" in out, error
    assert read_manifest("data/again").fingerprint == read_manifest("data/mnist").fingerprint
    assert read_manifest("data/again").splits["train"].rows == 50
    facts = json.loads(command("data", "fetch", "mnist", "--json", "--quiet").stdout)
    assert facts["folder"] == "data/raw/mnist" and facts["prepare"][:4] == ["distdl", "data", "prepare", "idx"]


def test_a_mirror_of_ones_own_is_asked_first(
    tmp_path: Path, command: Command, digits_of_mnist: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder beside a cluster without a network, or a server; its files must be the published ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name, content in digits_of_mnist.files.items():
        (tmp_path / "own" / name[1:]).write_bytes(content)
    assert command("data", "fetch", "mnist", "one", "--mirror", "own", "--quiet").code == 0
    assert digits_of_mnist.asked == []
    assert command("data", "fetch", "mnist", "two", "--mirror", f"{digits_of_mnist.url}/x", "--quiet").code == 0
    assert digits_of_mnist.asked[0][0].startswith("/x/") and not digits_of_mnist.asked[1][0].startswith("/x/")
    code, _, error = command("data", "fetch", "mnist", "three", "--mirror", "none", "--quiet")
    assert code == 2 and "there is no file none/train-images" in error and not list(tmp_path.glob(".three*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "did you mean 'mnist'"),
        ([], "--list tells"),
        (["mnist", "--list"], "--list stands alone"),
        (["mnist", "taken"], "taken is no folder"),
        (["mnist", "other"], "other exists and lacks"),
        (["mnist", "--prepare", "other"], "other already exists"),
    ],
)
def test_mistakes_are_told_before_anything_is_fetched(
    tmp_path: Path,
    command: Command,
    digits_of_mnist: Server,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    code, _, error = command("data", "fetch", *arguments, "--quiet")
    assert code == 2 and message in error and digits_of_mnist.asked == []


def test_adult_is_what_its_authors_published(
    tmp_path: Path, data_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real bytes have the checksums of the catalogue, and what it says prepares them does."""
    if not (data_folder / "adult").is_dir():
        pytest.skip("no adult in DISTDL_DATA")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    first = {"train": b"", "test": b"|1x3 Cross validator\n"}
    for part, name in (("train", "adult.data"), ("test", "adult.test")):
        rest = gzip.decompress((data_folder / "adult" / f"adult-{part}.csv.gz").read_bytes())
        (tmp_path / "own" / name).write_bytes(first[part] + rest)
    code, _out, error = command("data", "fetch", "adult", "--mirror", "own", "--prepare", "--quiet")
    assert code == 0, error
    manifest = read_manifest("data/adult")
    assert manifest.info["classes"] == ["<=50K", ">50K"]
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 32_561, "test": 16_281}


@pytest.mark.parametrize("name", [told.name for told in classics()])
def test_each_data_set_comes_from_a_server_and_is_prepared(
    tmp_path: Path, command: Command, servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All that the catalogue says of it but its checksums: the names of its files, how they are unpacked and mended, and
    the options that prepare them."""
    files, told = PUBLISHED[name](), find(name)
    assert [one.name for one in told.files] == list(files)
    server = servers(files={f"/{one}": content for one, content in files.items()})
    known = {one.name: one for one in told.files}
    served = tuple(file(n, c, f"{server.url}/{n}", kind=known[n].kind) for n, c in files.items())
    monkeypatch.setattr(catalogue, "classics", lambda: (replace(told, files=served),))
    monkeypatch.chdir(tmp_path)
    code, _, error = command("data", "fetch", name, "--prepare", "--quiet")
    assert code == 0, error
    assert len(server.asked) == len(files)
    assert read_manifest(f"data/{name}").splits["train"].rows > 0
    assert read_manifest(f"data/{name}").splits["test"].rows > 0


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_the_catalogue_is_sound(command: Command) -> None:
    """Every data set has checksums of their kind's form, places over the network, and options that its source knows."""
    assert {"mnist", "fashion_mnist", "cifar10", "cifar100", "iris", "adult", "wine_quality"} <= {
        told.name for told in classics()
    }
    for told in classics():
        assert re.fullmatch(r"[a-z0-9_]+", told.name) and told.licence and told.said_by and told.about
        assert told.page.startswith(("http://", "https://")) and told.source in source_names()
        parse_options(told.source, told.options_in("d"))
        assert entry(told.source)
        for one in told.files:
            assert re.fullmatch(r"[0-9a-f]+", one.checksum) and len(one.checksum) == {"sha256": 64, "md5": 32}[one.kind]
            assert one.urls and all(url.startswith(("http://", "https://")) for url in one.urls)
            assert "/" not in one.name
        names = {one.name for one in told.files}
        assert all((step.archive if isinstance(step, Unpack) else step.file) in names for step in told.steps)
    sums = [one.checksum for told in classics() for one in told.files]
    assert len(set(sums)) == len(sums)
    rows = json.loads(command("data", "fetch", "--list", "--json").stdout)
    assert [row["name"] for row in rows] == [told.name for told in classics()]
    assert "fashion_mnist" in command("data", "fetch", "--list").stdout
