"""Kernels of a layer whose results a product reads as float32 round them as if they were stored narrowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.cpu.attention import KernelAttention, attend, kv_layout, write_rows
from paceline.engine.cpu.kernels import layers
from paceline.engine.cpu.kernels.vectors import ELEMENTS
from paceline.engine.cpu.team import Kernel
from paceline.engine.kv import KVPool
from paceline.engine.rows import Segment, build_batch

ROWS, WIDTH = 19, 96


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def _random(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def _results(kernel: Kernel, task: NDArray[np.void], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of one task, narrow and wide."""
    outs = []
    for wide in (False, True):
        out = torch.empty(ROWS, WIDTH, dtype=torch.float32 if wide else dtype)
        task["next_row"], task["wide"], task["out"] = 0, wide, out.data_ptr()
        kernel(task.ctypes.data)
        outs.append(out)
    return outs[0], outs[1]


def _task(kind: np.dtype[np.void], dtype: torch.dtype) -> NDArray[np.void]:
    task = np.zeros((), dtype=kind)
    task["num_rows"], task["width"], task["element"] = ROWS, WIDTH, ELEMENTS[dtype]
    return task


def test_norms(dtype: torch.dtype) -> None:
    residual, weight = _random(dtype, ROWS, WIDTH), _random(dtype, WIDTH)
    task = _task(layers.NORM, dtype)
    task["residual"], task["weight"], task["epsilon"] = residual.data_ptr(), weight.data_ptr(), 1e-5
    narrow, wide = _results(Kernel(layers.normalize.address), task, dtype)
    assert torch.equal(wide, narrow.float())
    x = residual.float()
    expected = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
    torch.testing.assert_close(narrow, expected, rtol=0.01, atol=0.01)


def test_gates(dtype: torch.dtype) -> None:
    both = _random(dtype, ROWS, 2 * WIDTH)
    task = _task(layers.GATE, dtype)
    task["both"] = both.data_ptr()
    narrow, wide = _results(Kernel(layers.gate.address), task, dtype)
    assert torch.equal(wide, narrow.float())
    gates, ups = both.split(WIDTH, dim=-1)
    torch.testing.assert_close(narrow, torch.nn.functional.silu(gates) * ups, rtol=0.01, atol=0.01)


def test_attention(dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim, block = 4, 2, 32, 32
    pool = KVPool(
        layers=1,
        kv_heads=kv_heads,
        head_dim=head_dim,
        blocks=1,
        block_size=block,
        dtype=dtype,
        device=torch.device("cpu"),
        layout=kv_layout(dtype, head_dim=head_dim, group=heads // kv_heads, block_size=block),
    )
    batch = build_batch([Segment([0] * ROWS, 0, (0,))], block_size=block, device=torch.device("cpu"))
    query, key, value = (_random(dtype, count, ROWS, head_dim) for count in (heads, kv_heads, kv_heads))
    outs = []
    for kind in (dtype, torch.float32):
        out = torch.empty(ROWS, heads * head_dim, dtype=kind)
        backend = KernelAttention(heads=heads)
        forward = backend.begin(batch, pool)
        tasks = forward.layer_tasks(query, key, value, out, scale=0.2)
        write_rows(tasks.ctypes.data)
        attend(tasks.ctypes.data)
        outs.append(out)
    assert torch.equal(outs[1], outs[0].float())
    assert outs[0].abs().sum() > 0
