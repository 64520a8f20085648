"""A model that the engine computes passes the check; one that it does not is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from bench.engine_loop import loaded
from bench.families import make_family_model
from paceline.engine.attention import ragged_attention
from paceline.engine.check import CASES
from paceline.engine.loading import ModelError
from paceline.engine.model import Decoder, load_weights

CPU = torch.device("cpu")


def _saved(folder: Path, config: PreTrainedConfig) -> Path:
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "exact"), [("llama_mha", True), ("gemma3", True), ("mixtral", False)])
def test_a_model_is_compared_with_its_own_forward(
    family: str, exact: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    with loaded(make_family_model(tmp_path, family), dtype) as decoder:
        assert decoder.report.ok
        assert [case.name for case in decoder.report.cases] == list(CASES)
        assert decoder.exact is exact


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        # Every row one position further than it is.
        ("positions", "alone"),
        # Rows that stand behind the first forty of a batch are computed with another scale.
        ("batch", "batch"),
        # Moving keys and values to their places is forgotten.
        ("move", "moved"),
        # What is copied for another session is not copied.
        ("prepare", "prefix"),
    ],
)
def test_what_is_wrong_in_one_case_alone_is_seen_there(
    fault: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape, own = load_weights(make_family_model(tmp_path, "qwen3"), device=CPU, dtype=torch.float32)
    decoder = Decoder(model, shape, CPU)
    forward = model.forward

    def faulty(**told: object) -> object:
        positions = told["position_ids"]
        assert isinstance(positions, Tensor)
        rows = torch.arange(positions.shape[1])
        if fault == "positions":
            # Relative positions stay: each row is told twice its position.
            told["position_ids"] = positions * 2
        if fault == "batch" and len(set((positions[0] - rows).tolist())) == 3:
            told["position_ids"] = positions * 2
        return forward(**told)

    monkeypatch.setattr(model, "forward", faulty)
    if fault in ("move", "prepare"):
        monkeypatch.setattr(f"paceline.engine.kv.KVPool.{fault}", lambda *_: None)
    with pytest.raises(ModelError, match=r"qwen3 models are not served: with .* differ from the model's own"):
        decoder.verify(own)
    failed = [result.name for result in decoder.report.cases if not result.ok]
    assert failed[0] == case
    assert not decoder.exact or fault not in ("move", "prepare")


def test_a_rope_that_depends_on_the_longest_text_of_a_batch_is_not_served_wrong(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        initializer_range=0.2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    )
    with loaded(_saved(tmp_path, config)) as decoder:
        assert decoder.shape.max_context == 40, "up to there it is as without"


def test_attention_arguments_that_are_dropped_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever attention function the engine had: sinks that it forgets are found."""

    def forgetful(*told: object, s_aux: Tensor | None = None, **others: object) -> object:
        return ragged_attention(*told, **others)  # type: ignore[arg-type]

    monkeypatch.setattr("paceline.engine.model.ragged_attention", forgetful)
    with pytest.raises(ModelError, match="gpt_oss models are not served: with a session alone"):
        Decoder.load(make_family_model(tmp_path, "gpt_oss"), device=CPU, dtype=torch.float32)
