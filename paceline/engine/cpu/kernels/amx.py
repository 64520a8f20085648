"""The processor's matrix unit: its instructions, and what they multiply.

Intel AMX ("Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1, chapter 18): a tile is 16
rows of 64 bytes, one instruction multiplies 16 rows by 32 inputs of 16 outputs.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels.vectors import ADDRESS, FEATURES, LANES, i64, on_stack

# Rows of one block.
ROWS = 32
# Outputs of one block, inputs that one tile instruction takes.
COLUMNS = 32
DEPTH = 32
# Bytes of a tile, of its rows, and of a tile configuration.
TILE_BYTES, TILE_LINE, CONFIG_BYTES = 1024, 64, 64
# One configuration for blocks of ROWS rows and one for fewer.
CONFIGS_BYTES = 2 * CONFIG_BYTES

# Instructions that a processor lacks cannot even be compiled for it.
HAS_TILES = {"+amx-tile", "+amx-bf16"} <= FEATURES
_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()


def tile_config(rows: int) -> bytes:
    """What `ldtilecfg` reads, for blocks of 1 to ROWS rows: which rows of which tiles are used.

    Tiles 0 to 3 are sums (rows 0-15 in the first two), 4 and 5 the rows' inputs, 6 and 7 weights.
    """
    upper, lower = min(rows, LANES), max(rows - LANES, 0)
    heights = (upper, upper, lower, lower, upper, lower, LANES, LANES)
    widths = [TILE_LINE if height else 0 for height in heights]
    config = np.zeros(CONFIG_BYTES, dtype=np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = widths
    config[48:56] = heights
    return config.tobytes()


def _tile_instruction(builder: ir.IRBuilder, name: str, *operands: int | ir.Value) -> None:
    """An AMX instruction, or nothing where there is none; a number names a tile."""
    if not HAS_TILES:
        return
    values = [ir.Constant(_BYTE, operand) if isinstance(operand, int) else operand for operand in operands]
    signature = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), values)


def _config_instruction(name):
    @intrinsic
    def configure(context, address):
        def generate(context, builder, signature, arguments):
            _tile_instruction(builder, name, builder.inttoptr(arguments[0], _POINTER))
            return context.get_dummy_value()

        return types.void(ADDRESS), generate

    return configure


load_config, save_config = _config_instruction("ldtilecfg"), _config_instruction("sttilecfg")


def _tile_products(halves, *, add=False):
    """`halves` times 16 rows by two tiles of weights, instead of the sums or added to them."""
    # Few rows read a weight once: with a hint not to keep it near.
    load_weights = "tileloaddt164" if halves == 1 else "tileloadd64"

    @intrinsic
    def multiply(context, x, line, weight, weight_line, side_bytes, step_bytes, depth, sums, stride):
        """sums[r, :COLUMNS] = (or +=) x[r] @ weight in float32, over `depth` tiles of DEPTH inputs.

        Bytes: `line` from row to row of x, `weight_line` from pair to pair of inputs, `side_bytes` from one
        tile of outputs to the other, `step_bytes` from tile to tile of inputs; `stride` from row to row of
        sums.
        """

        def generate(context, builder, signature, arguments):
            x, line, weight, weight_line, side_bytes, step_bytes, depth, sums, stride = arguments

            def tile(name, number, address, stride):
                _tile_instruction(builder, name, number, builder.inttoptr(address, _POINTER), stride)

            def each_sum(name):
                for number in range(2 * halves):
                    half, side = divmod(number, 2)
                    at = builder.add(builder.mul(stride, i64(half * LANES)), i64(4 * side * LANES))
                    tile(name, number, builder.add(sums, at), stride)

            if add:
                each_sum("tileloadd64")
            else:
                for number in range(2 * halves):
                    _tile_instruction(builder, "tilezero", number)
            with cgutils.for_range(builder, depth) as loop:
                inputs = builder.add(x, builder.mul(loop.index, i64(TILE_LINE)))
                weights = builder.add(weight, builder.mul(loop.index, step_bytes))
                for half in range(halves):
                    rows = builder.add(inputs, builder.mul(line, i64(half * LANES)))
                    tile("tileloadd64", 4 + half, rows, line)
                    for side in range(2):
                        if half == 0:
                            at = builder.add(weights, builder.mul(side_bytes, i64(side)))
                            tile(load_weights, 6 + side, at, weight_line)
                        _tile_instruction(builder, "tdpbf16ps", 2 * half + side, 4 + half, 6 + side)
            each_sum("tilestored64")
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return multiply


multiply_16, multiply_32 = _tile_products(1), _tile_products(2)
add_16, add_32 = _tile_products(1, add=True), _tile_products(2, add=True)
config_place = on_stack(CONFIG_BYTES)
