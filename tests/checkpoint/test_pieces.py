"""Checkpoints in pieces: who has what is pure arithmetic, no rank gathers anything to write, and a reader takes the bytes
that it needs and no others, each compared as it comes."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distdl.checkpoint import stream
from distdl.checkpoint.layout import MANIFEST, checksum, seal
from distdl.checkpoint.load import Checkpoint, read_manifest
from distdl.checkpoint.reader import Reader
from distdl.checkpoint.verify import problems
from distdl.errors import DataCorrupt
from distdl.layout.axes import Axis, Shard
from distdl.layout.boxes import Box, of_run, whole
from distdl.layout.owned import Same, of_flat, read_flat, shared_out
from distdl.ways.start import open_weights
from tests.checkpoint.test_checkpoint_folder import bits, edit, equal, flip, learn, new_engine, restored, write
from tests.conftest import Result

FILE = "tensors-00000-00000.safetensors"
VERSION_1 = Path(__file__).parent / "version_1" / "step_00000003"
"""A checkpoint that was written before there were pieces."""


def counted(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (3, 1, 4), (2, 3, 2, 5)])
def test_a_run_of_elements_is_a_few_boxes(shape: tuple[int, ...]) -> None:
    tensor, size = counted(*shape), math.prod(shape)
    for first in range(size):
        for count in range(1, size - first + 1):
            boxes = of_run(shape, first, count)
            assert torch.cat([tensor[box.slices].flatten() for box in boxes]).tolist() == list(
                range(first, first + count)
            )
            assert len(boxes) <= max(1, 2 * len(shape) - 1)
    assert of_run(shape, 0, 0) == []


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    ("ranks", "blocks", "multiple"), [(1, 1, 4), (2, 1, 1), (3, 1, 1), (2, 3, 1), (4, 2, 1), (4, 1, 8)]
)
def test_a_part_lies_where_it_was_cut_from(dim: int, ranks: int, blocks: int, multiple: int) -> None:
    """Any run of any rank's part is found in the whole tensor; all ranks' boxes together are it, once."""
    full = counted(*((12, 5) if dim == 0 else (5, 12))) + 1
    seen = torch.zeros_like(full)
    for index in range(ranks):
        shard = Shard(Axis(ranks, index), dim, tuple(full.shape), blocks, multiple)
        part = torch.nn.Parameter(shard.cut(full))
        part.distdl_shard = shard  # type: ignore[attr-defined]
        middle = part.numel() // 3
        for first, flat in ((0, part.detach().flatten()[:middle]), (middle, part.detach().flatten()[middle:])):
            for owned in of_flat("x", part, first, flat):
                assert owned.shape == tuple(full.shape) and torch.equal(owned.tensor, full[owned.box.slices])
                seen[owned.box.slices] += 1
        again = torch.zeros(part.numel())
        read_flat(lambda name, box=None: full[box.slices], "x", part, 0, again)
        assert torch.equal(again.view(part.shape), part)
    assert torch.equal(seen, torch.ones_like(full))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_what_ranks_have_alike_is_shared_out_evenly(ranks: int) -> None:
    tensors = {"a": counted(30, 7), "b": counted(3).double(), "c": counted(), "d": counted(0, 2), "e": counted(50, 2).T}
    of = {"b": torch.nn.Parameter(counted(3, 9))}  # a state of its rows
    seen = {name: torch.zeros(t.shape) for name, t in tensors.items()}
    empty, sizes = 0, []
    for index in range(ranks):
        mine = list(shared_out([Same(name, of.get(name, t), t) for name, t in tensors.items()], Axis(ranks, index)))
        for owned in mine:
            assert torch.equal(owned.tensor, tensors[owned.name][owned.box.slices])
            assert owned.shape == tuple(tensors[owned.name].shape)
            seen[owned.name][owned.box.slices] += 1
            empty += owned.name == "d"
        sizes.append(sum(owned.tensor.nbytes for owned in mine))
    assert all(torch.equal(count, torch.ones_like(count)) for count in seen.values()) and empty == 1
    assert max(sizes) - min(sizes) <= 16


# -- reading -----------------------------------------------------------------------------------------------------------

BLOCK = 256
SHAPES = {"weights/a": (40, 33), "weights/b": (6, 5, 4), "buffers/n": (), "weights/empty": (0, 3), "weights/c": (700,)}


def values() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {n: torch.tensor(7) if n == "buffers/n" else torch.randn(shape) for n, shape in SHAPES.items()}


def in_pieces(folder: Path, seed: int = 0, files: int = 3) -> Path:
    """A checkpoint of `values`, each tensor cut into boxes that lie in any of the files."""
    choose, content = random.Random(seed), values()
    parts: list[dict[str, Tensor]] = [{} for _ in range(files)]
    tensors: dict[str, Any] = {}
    for name, tensor in content.items():
        edges = sorted({0, tensor.numel(), *(choose.randint(0, tensor.numel()) for _ in range(3))})
        boxes = [box for a, b in itertools.pairwise(edges) for box in of_run(tensor.shape, a, b - a)]
        meta = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:]}
        if len(boxes) < 2:
            parts[0][name] = tensor
            tensors[name] = {**meta, "file": "tensors-0.safetensors"}
            continue
        pieces: dict[str, list[str]] = {}
        for box in boxes:
            where = choose.randrange(files)
            parts[where][f"{name}[{box}]"] = tensor[box.slices]
            pieces.setdefault(f"tensors-{where}.safetensors", []).append(str(box))
        tensors[name] = {**meta, "pieces": pieces}
    folder.mkdir()
    kept = {}
    for index, part in enumerate(parts):
        path = folder / f"tensors-{index}.safetensors"
        sums = stream.write_safetensors(path, {n: stream.whole(t.contiguous()) for n, t in part.items()})
        kept[path.name] = {"bytes": path.stat().st_size, **sums._asdict()}
    manifest = {"format": "distdl-checkpoint", "version": 2, "step": 3, "block": stream.BLOCK, "files": kept}
    manifest |= {"tensors": tensors}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "xxh3": seal(manifest)}))
    return folder


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stream, "BLOCK", BLOCK)
    return in_pieces(tmp_path / "step_00000003")


def reader(folder: Path) -> Reader:
    return Reader(folder, read_manifest(folder))


def test_any_box_of_any_tensor_is_read_from_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", BLOCK)
    choose, expected = random.Random(1), values()
    for seed in range(3):
        folder = in_pieces(tmp_path / f"of-{seed}", seed)
        there = reader(folder)
        for name, tensor in expected.items():
            assert torch.equal(there.read(name), tensor) and there.read(name).dtype == tensor.dtype
            for _ in range(20 if tensor.numel() > 1 else 0):
                ends = [sorted(choose.sample(range(n + 1), 2)) for n in tensor.shape]
                box = Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends))
                assert torch.equal(there.read(name, box), tensor[box.slices]), (name, box)
        assert sum(region.box.size for region in there.regions("weights/a")) == 40 * 33


def test_no_more_is_read_than_is_needed(pieces: Path) -> None:
    """A box of rows costs its bytes, and for each piece of it at most two blocks; nothing is read twice; files that have
    none of it are not opened."""
    headers = {}
    for index in range(3):
        path = pieces / f"tensors-{index}.safetensors"
        headers[path.name] = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    there = reader(pieces)
    box = Box((3, 0), (9, 33))
    touched = [r for r in there.regions("weights/a") if r.box.common(box) is not None]
    there.read("weights/a", box)
    files = {region.file for region in touched}
    assert set(there._files) == files
    allowed = box.size * 4 + len(touched) * 2 * BLOCK + sum(headers[file] + BLOCK for file in files)
    assert box.size * 4 <= there.bytes_read <= allowed < sum(f.stat().st_size for f in pieces.glob("tensors-*"))
    all_of_it = reader(pieces)
    for name in all_of_it.names:
        all_of_it.read(name)
    assert all_of_it.bytes_read <= 1.6 * sum(f.stat().st_size for f in pieces.glob("tensors-*"))


def test_columns_of_long_rows_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows longer than a block only the blocks that the columns touch, of shorter ones all."""
    monkeypatch.setattr(stream, "BLOCK", BLOCK)
    tensor = torch.randn(8, 1000)
    folder = tmp_path / "step_00000003"
    folder.mkdir()
    path = folder / "x.safetensors"
    sums = stream.write_safetensors(path, {"weights/x": stream.whole(tensor)})
    manifest: dict[str, Any] = {"format": "distdl-checkpoint", "version": 2, "step": 3, "block": BLOCK}
    manifest["files"] = {path.name: {"bytes": path.stat().st_size, **sums._asdict()}}
    manifest["tensors"] = {"weights/x": {"file": path.name, "shape": [8, 1000], "dtype": "float32"}}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "xxh3": seal(manifest)}))
    there, box = reader(folder), Box((0, 500), (8, 100))
    assert torch.equal(there.read("weights/x", box), tensor[:, 500:600])
    assert there.bytes_read <= 8 * (400 + 2 * BLOCK) + BLOCK


def test_every_flipped_byte_is_found_by_who_reads_it(pieces: Path) -> None:
    """Each byte of each file belongs to a block with a checksum, headers and all."""
    missed = []
    for file in sorted(pieces.glob("tensors-*")):
        for place in range(0, file.stat().st_size, 29):
            flip(file, place)
            try:
                there = reader(pieces)
                for name in there.names:
                    there.read(name)
                missed.append((file.name, place))
            except DataCorrupt as error:
                assert f"{file.name} is not what was written" in str(error)
            flip(file, place)
    assert missed == []
    file = pieces / "tensors-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataCorrupt, match=r"tensors-1\.safetensors is not what was written"):
        [reader(pieces).read(name) for name in SHAPES]
    file.unlink()
    with pytest.raises(DataCorrupt, match=r"is not whole: tensors-1\.safetensors is missing"):
        [reader(pieces).read(name) for name in SHAPES]


def a(manifest: dict[str, Any]) -> dict[str, Any]:
    """What it says of weights/a."""
    found: dict[str, Any] = manifest["tensors"]["weights/a"]
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: a(m)["pieces"].popitem(), "weights/a has pieces of .* numbers in all, and it has 1,320"),
        (lambda m: a(m).update(pieces={"tensors-0.safetensors": ["0:41,0:33"]}), "has the piece '0:41,0:33'"),
        (lambda m: a(m).update(pieces={"tensors-0.safetensors": ["../x"]}), "has the piece '../x'"),
        (lambda m: a(m).update(pieces={"../x": ["0:40,0:33"]}), "lies outside the folder"),
        (lambda m: a(m).update(pieces={"tensors-0.safetensors": "0:1"}), "has no list of texts"),
        (lambda m: a(m).update(shape=[40, -33]), "has the shape"),
        (lambda m: m["tensors"]["weights/c"].update(dtype="object"), "unknown dtype object"),
        (lambda m: m["tensors"]["weights/empty"].update(shape=[10**9, 10**9]), "is in .* not as said"),
        (lambda m: m["tensors"]["weights/b"].update(shape=[6, 4, 5]), "has the piece|is in .* not as said"),
        (lambda m: m["files"]["tensors-0.safetensors"].update(blocks="00"), "not a checksum for each of its blocks"),
        (lambda m: m.update(block=0), "block is 0, not a number of bytes"),
    ],
)
def test_a_manifest_that_names_other_pieces_is_not_believed(
    pieces: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    """Sealed, as somebody else may have written it."""
    edit(pieces, change)
    with pytest.raises(DataCorrupt, match=says):
        [reader(pieces).read(name) for name in SHAPES]


def test_pieces_that_lie_over_each_other_are_found(pieces: Path, tmp_path: Path) -> None:
    (pieces / "state.json").write_text('{"step": 3}')
    meta = {"bytes": (pieces / "state.json").stat().st_size, "xxh3": checksum(pieces / "state.json")}
    edit(pieces, lambda m: m["files"].update({"state.json": meta}))
    assert problems(pieces) == []
    file = pieces / "over.safetensors"
    save_file({"weights/c[0:400]": torch.ones(400), "weights/c[100:400]": torch.ones(300)}, file)
    meta = {"bytes": file.stat().st_size, "xxh3": checksum(file)}
    edit(pieces, lambda m: m["files"].update({file.name: meta}))
    edit(pieces, lambda m: m["tensors"]["weights/c"].update(pieces={file.name: ["0:400", "100:400"]}))
    assert any("weights/c has 100:400 in two pieces" in text for text in problems(pieces))
    with pytest.raises(DataCorrupt, match="its pieces lie over each other"):
        reader(pieces).read("weights/c", Box((100,), (300,)))


# -- version 1 ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_version_1_is_read(command: Callable[..., Result], tmp_path: Path) -> None:
    """Trained for three steps by the release that wrote it: the same bits come of it now."""
    engine = new_engine(0, None, hidden=[3])
    learn(engine, 0, 3)
    assert json.loads((VERSION_1 / MANIFEST).read_text())["version"] == 1
    for verify in (True, False):
        checkpoint = Checkpoint(VERSION_1, verify)
        assert checkpoint.state.primary == 0.5 and equal(
            bits(restored(checkpoint, new_engine(9, None, hidden=[3]))), bits(engine)
        )
    rows = Checkpoint(VERSION_1, verify=False)
    assert torch.equal(
        rows.read("weights/net.0.weight", Box((1, 0), (1, 64)))[0], bits(engine)["weights/net.0.weight"][1]
    )
    for verb in ("inspect", "verify"):
        assert command("checkpoint", verb, VERSION_1).code == 0
    done = command("checkpoint", "convert", VERSION_1, tmp_path / "step_00000003")
    assert done.code == 0 and read_manifest(tmp_path / "step_00000003")["version"] == 2
    assert all(torch.equal(rows.read(n), Checkpoint(tmp_path / "step_00000003").read(n)) for n in rows.tensors)


def test_damage_in_one_of_version_1_is_found_by_the_first_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(VERSION_1, tmp_path / VERSION_1.name))
    file = folder / "tensors-00000-00000.safetensors"
    for place in (0, 9, 700, -1):
        flip(file, place)
        with pytest.raises(DataCorrupt, match=f"{file.name} is not what was written"):
            Checkpoint(folder, verify=False).read("weights/net.0.bias")
        flip(file, place)
    assert Checkpoint(folder, verify=False).read("weights/net.0.bias").shape == whole((3,)).shape


def test_weights_that_a_run_starts_from_are_compared_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint of 18 tensors a start takes the bytes of 6, and damage in those is found."""
    monkeypatch.setattr(stream, "BLOCK", 64)
    engine = new_engine(0, None, hidden=[3])
    learn(engine, 0, 1)
    path = write(tmp_path, engine, 1)
    read = 0

    def counted(self: Reader, name: str, box: Box | None = None) -> Tensor:
        nonlocal read
        before = self.bytes_read
        found = original(self, name, box)
        read += self.bytes_read - before
        return found

    original = Reader.read
    monkeypatch.setattr(Reader, "read", counted)
    source = open_weights(str(path), str(tmp_path))
    assert all(torch.equal(source.read(n), p) for n, p in engine.learner.named_parameters())
    weights = sum(p.nbytes for p in engine.learner.parameters())
    assert weights <= read < weights + 6 * 2 * 64 + 3 * 1024 and read < 0.75 * (path / FILE).stat().st_size
    flip(path / FILE, -5)  # of a weight: the last of the names
    with pytest.raises(DataCorrupt, match="its checksum differs"):
        [open_weights(str(path), str(tmp_path)).read(name) for name in source.shapes]


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_tells_what_differs(command: Callable[..., Result], tmp_path: Path) -> None:
    """Between checkpoints of any version, and other formats; equal is exit code 0."""
    same = tmp_path / "step_00000003"
    assert command("checkpoint", "convert", VERSION_1, same).code == 0
    code, out, _ = command("checkpoint", "diff", VERSION_1, same)
    assert code == 0 and "18 tensors are equal" in out
    changed = {name: Checkpoint(same).read(name) for name in Checkpoint(same).tensors}
    weights = {name.removeprefix("weights/"): t for name, t in changed.items() if name.startswith("weights/")}
    weights["net.0.bias"] = weights["net.0.bias"] + torch.tensor([0.0, 0.5, 0.0])
    weights["more"], gone = torch.ones(2), weights.pop("net.1.bias")
    weights["net.4.bias"] = weights["net.4.bias"][None]
    save_file(weights, tmp_path / "changed.safetensors")
    done = command("checkpoint", "diff", same, tmp_path / "changed.safetensors", "--json")
    found = json.loads(done.stdout)
    assert done.code == 1 and not found["equal"] and found["same"] == 3 and gone.shape == (3,)
    (row,) = found["differ"]
    assert (row["name"], row["count"], row["of"], row["largest"]) == ("weights/net.0.bias", 1, 3, pytest.approx(0.5))
    assert found["shapes"] == {"weights/net.4.bias": [[10], [1, 10]]}
    assert "weights/net.1.bias" in found["only"][0] and found["only"][1] == ["weights/more"]
    printed = command("checkpoint", "diff", same, tmp_path / "changed.safetensors")
    assert printed.code == 1 and "weights/more is in B alone" in printed.stdout and "1 of 3" in printed.stdout
