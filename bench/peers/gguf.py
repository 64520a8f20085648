"""GGUF files of the model under test: the packaged one, and the same weights in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants
from numpy.typing import NDArray

from bench.results import replacing

_ARCHITECTURE = "general.architecture"
_FILE_TYPE = "general.file_type"


def to_bfloat16(source: Path, target: Path) -> None:
    """Write `source` with its matrices in bfloat16, whole or not at all. Vectors stay in float32."""
    reader = GGUFReader(source)
    with replacing(target) as scratch:
        writer = GGUFWriter(scratch, reader.fields[_ARCHITECTURE].contents())
        _copy_fields(reader, writer)
        writer.add_file_type(LlamaFileType.MOSTLY_BF16)
        for tensor in reader.tensors:
            _add(writer, tensor.name, quants.dequantize(tensor.data, tensor.tensor_type))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    for name, field in reader.fields.items():
        # The writer adds the first two itself.
        if name in (_ARCHITECTURE, _FILE_TYPE) or name.startswith("GGUF."):
            continue
        kind, *inner = field.types
        value: Any = field.contents()
        writer.add_key_value(name, value, kind, sub_type=inner[-1] if kind is GGUFValueType.ARRAY else None)


def _add(writer: GGUFWriter, name: str, values: NDArray[np.float32]) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = GGMLQuantizationType.BF16
    writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
