"""Matrix products: right, and a row's bits are its own, by tiles and by vectors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paceline.engine.cpu import linear
from paceline.engine.cpu.linear import PackedLinear, pack_linears
from paceline.engine.cpu.tiles import matrix_unit

# Relative to the size of the outputs.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _plain(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


@pytest.fixture(params=["as the machine has it", "without a matrix unit"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without a matrix unit":
        monkeypatch.setattr(linear, "matrix_unit", lambda: False)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "bias"),
    [(64, 128, False), (576, 960, True), (32, 1, True), (7, 33, False), (100, 50, True), (40, 64, False)],
)
def test_gives_the_product_rounded_once(
    units: str, inputs: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    plain = _plain(inputs, outputs, dtype, bias=bias)
    packed = PackedLinear(plain)
    assert torch.equal(packed.weight, plain.weight)
    assert packed.tiled == (dtype is torch.bfloat16 and units == "as the machine has it" and matrix_unit())
    for shape in ((1,), (2, 5), (1, 33), (70,), (0,)):
        x = torch.randn(*shape, inputs).to(dtype)
        expected = nn.functional.linear(
            x.double(), plain.weight.double(), None if plain.bias is None else plain.bias.double()
        )
        got = packed(x)
        assert got.dtype == dtype
        assert got.shape == expected.shape
        torch.testing.assert_close(
            got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * (inputs**0.5)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("units")
def test_the_bits_of_a_row_are_its_own(dtype: torch.dtype) -> None:
    packed = PackedLinear(_plain(96, 200, dtype, bias=True))

    @given(
        rows=st.lists(st.integers(0, 39), min_size=1, max_size=130),
        threads=st.integers(1, 3),
    )
    @settings(deadline=None)
    def check(rows: list[int], threads: int) -> None:
        x = torch.randn(40, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
        alone = torch.cat([packed(row[None]) for row in x])
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(packed(x[rows]), alone[rows])
        finally:
            torch.set_num_threads(before)

    check()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 128), torch.float32),
        ((1,), torch.float32),
        ((3, 64), torch.float64),
        ((3, 64), torch.bfloat16),
    ],
)
def test_what_does_not_fit_is_refused_before_memory_is_touched(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    packed = PackedLinear(_plain(64, 32, torch.float32, bias=False))
    with pytest.raises(ValueError, match=r"64 inputs in torch.float32"):
        packed(torch.zeros(shape, dtype=dtype))


def test_torchs_own_matrix_kernels_work_between_ours() -> None:
    """Both configure the matrix unit's tiles."""
    plain = _plain(256, 256, torch.bfloat16, bias=False)
    packed = PackedLinear(plain)
    x = torch.randn(40, 256).bfloat16()
    expected = plain(x)
    for rows in (1, 17, 40):
        packed(x[:rows])
        assert torch.equal(plain(x), expected)


def test_infinities_and_nans_stay_in_their_rows() -> None:
    packed = PackedLinear(_plain(64, 64, torch.bfloat16, bias=False))
    x = torch.randn(20, 64).bfloat16()
    expected = packed(x)
    x[3], x[7, 0] = float("nan"), float("inf")
    got = packed(x)
    assert got[3].isnan().all()
    assert not got[7].isfinite().any()
    kept = [row for row in range(20) if row not in (3, 7)]
    assert torch.equal(got[kept], expected[kept])


def test_replaces_plain_linears_only() -> None:
    class Quantised(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "q_proj": _plain(8, 8, torch.float32, bias=False),
            "k_proj": _plain(8, 4, torch.float32, bias=False, seed=1),
            "v_proj": _plain(8, 4, torch.float32, bias=False, seed=2),
            "other": _plain(8, 3, torch.float32, bias=True),
            "in_float64": _plain(8, 3, torch.float64, bias=True),
            "quantised": Quantised(8, 2),
        }
    )
    x = torch.randn(5, 8)
    expected = {name: module(x) for name, module in model.items() if name != "in_float64"}
    pack_linears(model)
    assert type(model["in_float64"]) is nn.Linear
    assert type(model["quantised"]) is Quantised
    assert isinstance(model["other"], PackedLinear)
    for name, result in expected.items():
        torch.testing.assert_close(model[name](x), result)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of this kind")
def test_compiles_for_processors_without_a_matrix_unit() -> None:
    """LLVM gives up on instructions that its target lacks, even where they would never run."""
    program = """
import torch
from paceline.engine.cpu.linear import PackedLinear
from paceline.engine.cpu.tiles import matrix_unit
plain = torch.nn.Linear(64, 48).bfloat16().requires_grad_(False)
x = torch.randn(5, 64).bfloat16()
packed = PackedLinear(plain)
assert not matrix_unit() and not packed.tiled
torch.testing.assert_close(packed(x), plain(x), rtol=0.02, atol=0.02)
from paceline.engine.cpu import attention as cpu_attention
"""
    without = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | without, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
