"""How many kernels a dropout, a batch normalisation and connectionist temporal classification take, and that whichever way
a mask is drawn its bits are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.kernels import cases, kernels, written
from distdl.layout import noise
from distdl.layout.axes import Axis, here
from distdl.layout.noise import Dropout
from distdl.layout.process import ProcessState
from tests.pretended_gpu import PretendedGPU, put

MOST = {
    "dropout": (4, 4.5),
    "dropout of attention": (4, 4.5),
    "uniform numbers": (3, 5.5),
    "batch normalisation": (1, 1.1),
    "CTC of 50 frames, on GPUs": (2, 1.0),
    "CTC of 200 frames, on GPUs": (2, 1.0),
}
"""Kernels, and bytes that they write by those of what goes in."""


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    with ProcessState():
        yield


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[Callable[[], object], Tensor]]:
    return cases()


@pytest.mark.parametrize("name", MOST)
def test_few_kernels_and_bytes(name: str, counted: dict[str, tuple[Callable[[], object], Tensor]]) -> None:
    call, by = counted[name]
    assert 0 < kernels(call) <= MOST[name][0]
    assert written(call) <= MOST[name][1] * by.numel() * by.element_size()


def mask(shape: tuple[int, ...] = (6, 7, 5), draws: int = 2, p: float = 0.3) -> Tensor:
    noise.begin(11, torch.tensor([0, 1, 5, 2**31, 2**40 + 5, 9])[: shape[0]])
    for _ in range(draws):
        found = noise.kept(torch.Size(shape), p)
    return found


def test_elements_beyond_the_tables_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mask()
    monkeypatch.setattr(noise, "LARGEST", 8)
    assert torch.equal(mask(), whole)


def test_a_slice_of_the_sequence_has_the_masks_of_its_tokens() -> None:
    whole = mask((6, 8, 5))
    for rank in range(2):
        here.sequence = Axis(2, rank)
        assert torch.equal(mask((6, 4, 5)), whole[:, 4 * rank : 4 * rank + 4])


def test_what_is_dropped_lies_in_memory_as_it_did() -> None:
    """A convolution that follows would else turn its maps around, and a sum be rounded in another order."""
    noise.begin(1, torch.arange(3))
    maps = torch.randn(3, 4, 5, 6)
    for x in (maps.contiguous(memory_format=torch.channels_last), maps.transpose(1, 2), maps):
        noise.layer(0)
        found = Dropout(0.5)(x)
        assert found.stride() == x.stride() and 0 < float((found == 0).double().mean()) < 1


@pytest.mark.parametrize("works", [True, False])
def test_gpus_draw_a_mask_in_one_kernel_with_the_same_bits(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it cannot be built it is said, once, and the mask is the same."""
    x, asked = torch.randn(6, 7, 5), 0

    def kernel(*given: Any) -> Tensor:
        nonlocal asked
        asked += 1
        if not works:
            raise RuntimeError("no compiler")
        return noise._mask_of(*given)

    layer, positions = Dropout(0.3), torch.arange(6)
    noise.begin(4, positions)
    expected = [layer(x), layer(x)]
    built = noise._OrNone(kernel)
    monkeypatch.setattr(noise, "_mask_kernel", lambda: built)
    with PretendedGPU() as gpu:
        noise.begin(4, put(positions.clone(), True))
        on_gpu = put(x.clone(), True)
        if works:
            found = [layer(on_gpu), layer(on_gpu)]
        else:
            with pytest.warns(UserWarning, match="which could not be built: no compiler") as said:
                found = [layer(on_gpu), layer(on_gpu)]
            assert len(said) == 1
    assert asked == (2 if works else 1) and not gpu.wrong and not gpu.reads
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def block(x: Tensor) -> Tensor:
    """Two draws of a layer and uniform numbers, as a compiled block asks for them."""
    return Dropout(0.3)(x) + Dropout(0.2)(x).tanh() * noise.uniform(*x.shape)


def bits_of(function: Callable[[Tensor], Tensor], seed: int, layer: int, n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, n * 40).view(n, 8, 5).requires_grad_()
    noise.begin(seed, torch.arange(n) + 2**33)
    noise.layer(layer)
    out = function(x)
    out.sum().backward()
    return out.detach(), x.grad


def test_a_compiler_sees_the_same_masks_in_one_graph_for_every_layer_and_seed() -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=graphs, fullgraph=True)
    for seed, layer in ((1, 0), (1, 3), (2**40, 1)):
        for got, want in zip(bits_of(compiled, seed, layer), bits_of(block, seed, layer)):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
            assert torch.equal(got == 0, want == 0)
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_the_compiled_mask_has_the_same_bits() -> None:
    """As GPUs get it from the same compiler, of any shape in one build."""
    torch._dynamo.reset()
    kernel = torch.compile(noise._mask_of, dynamic=True)
    for first, count in ((0, 35), (64, 1000), (7, 77)):
        keys, floor = noise._keys(torch.arange(6), 5), -(2**29)
        assert torch.equal(kernel(keys, floor, first, count), noise._mask_of(keys, floor, first, count))
    want = bits_of(block, 1, 0)
    for got, expected in zip(bits_of(torch.compile(block, fullgraph=True), 1, 0), want):
        assert torch.equal(got == 0, expected == 0)


def test_no_samples_and_elements_go_together() -> None:
    """The product of a hash's signs over two samples and two elements, and over three samples, is +1 half the time: that of
    keys that were only added to those of the elements would be +1 always."""
    noise.begin(3, torch.arange(300))
    signs = (noise.bits(torch.Size((300, 400))) >= 0).double() * 2 - 1
    both = signs @ signs.T / signs.shape[1]  # (300, 300)
    both.fill_diagonal_(0)
    assert float(both.square().sum() / (300 * 299)) == pytest.approx(1 / 400, rel=0.05)
    assert float(both.abs().max()) < 6 / 20
    three = torch.einsum("in,jn,kn->ijk", signs[:60], signs[100:160], signs[200:260]) / 400
    assert float(three.abs().max()) < 6 / 20 and float(three.square().mean()) == pytest.approx(1 / 400, rel=0.05)
