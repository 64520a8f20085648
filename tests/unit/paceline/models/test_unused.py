"""What transformers is kept from importing, and when torchao is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.models.unused import is_torchao_checkpoint


@pytest.mark.parametrize("package", ["torch", "scipy", "torchao"])
def test_a_hidden_package_is_not_found(package: str) -> None:
    code = (
        "import sys\nfrom paceline.models.unused import hide\n"
        f"hide({package!r})\n"
        f"from transformers.utils import is_{package}_available as one\n"
        f"from transformers.utils.import_utils import is_{package}_available as other\n"
        f"print(one(), other(), {package!r} in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [(None, False), ({"quant_method": "gptq"}, False), ({"quant_method": "torchao"}, True)],
)
def test_torchao_is_needed_for_its_own_checkpoints(
    tmp_path: Path, quantization: dict[str, str] | None, expected: bool
) -> None:
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantization else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_torchao_checkpoint(str(tmp_path)) is expected


def test_torchao_may_be_needed_for_what_is_not_here_yet(tmp_path: Path) -> None:
    assert is_torchao_checkpoint(str(tmp_path / "nowhere"))
