"""A Hugging Face decoder behind one call: rows in, logits of chosen rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.masking_utils import AttentionMaskInterface

from paceline.engine.attention import (
    NAME,
    AttentionBackend,
    AttentionError,
    Forward,
    attending,
    ragged_attention,
)
from paceline.engine.attention_flex import FlexAttention
from paceline.engine.attention_kernels import KernelAttention, kv_layout
from paceline.engine.fused import FusedDecoder, fuse
from paceline.engine.kernels.vectors import ELEMENTS, LANES
from paceline.engine.kv import KVLayout, KVPool
from paceline.engine.linear import pack_linears
from paceline.engine.own_attention import OWN_ATTENTION, adopt
from paceline.engine.rows import RaggedBatch, Segment, build_batch
from paceline.engine.shape import ModelShape, context_of, hold_rotation, look, watched_mask

# Positions of one KV block, which is one chunk of attention.
BLOCK_SIZE = 128


# By how much two ways to compute the same logits may differ, relative to them.
_FUSED_ERROR = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ModelError(ValueError):
    """The model cannot be served; the message says why and what to do."""


def _text_config(path: str | Path, trust_remote_code: bool) -> Any:
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return config.get_text_config(decoder=True)


def _check_division(config: Any, ranks: int) -> None:
    """Raises `ModelError` where a model cannot be divided, before gigabytes are loaded."""
    plan = config.base_model_tp_plan
    if not plan:
        raise ModelError(
            f"transformers has no tensor parallel plan for {config.model_type} models; "
            "serve it with one process"
        )
    # Some plans gather the heads before they attend, so that every rank has all of them.
    if not any(name.endswith("k_proj") and style == "colwise" for name, style in plan.items()):
        return
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % ranks or kv_heads % ranks:
        raise ModelError(
            f"{heads} heads and {kv_heads} key heads cannot be divided by {ranks} ranks; "
            "start a number of processes that divides both (torchrun --nproc-per-node)"
        )


def load_weights(
    path: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    ranks: int = 1,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ModelShape]:
    """A model from a folder or hub id, or this rank's share of it; dtype None keeps the checkpoint's own.

    Weights are read from safetensors only: other files are pickles, which run code as they are read.
    `trust_remote_code`: run Python that comes with the model, where transformers has none for it.

    Raises `ModelError` where transformers cannot load it as a causal decoder, or not divide it.
    """
    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, watched_mask)
    division: dict[str, Any] = {}
    try:
        config = _text_config(path, trust_remote_code)
        own = config.model_type in OWN_ATTENTION
        if ranks > 1:
            _check_division(config, ranks)
            division["distributed_config"] = DistributedConfig(tp_size=ranks, tp_plan="auto")
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            attn_implementation="eager" if own else NAME,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **division,
        )
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {error}") from error
    model.eval().requires_grad_(False).to(device)
    hold_rotation(model)
    if own:
        adopt(model, context_of(config))
    try:
        return model, look(model, config, ranks=ranks)
    except (AttentionError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelError(f"{config.model_type} models are not served: {error}") from error


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises `ModelError` for a device this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name} was asked for, but torch sees no CUDA GPU; use --device cpu")
    return torch.device(name)


class Decoder:
    """The target model, its KV pool layout and its one forward."""

    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, device: torch.device, *, kernels: bool | None = None
    ) -> None:
        """`kernels`: attend with the CPU's own kernels or with FlexAttention; None: as the device wants."""
        self.model = model
        self.shape = shape
        self.device = device
        on_cpu = device.type == "cpu"
        self._kernels = on_cpu if kernels is None else kernels
        self._make_pool: Callable[..., KVPool] = KVPool
        attention = KernelAttention(heads=shape.heads) if self._kernels else FlexAttention()
        self._attention: AttentionBackend = attention
        # A share's layers are transformers' own: collectives are part of them.
        packed = on_cpu and shape.ranks == 1 and pack_linears(model)
        # Whether a token's bits are its own: known of the CPU's kernels, not claimed for others.
        self.exact = packed and self._kernels
        self._fused: FusedDecoder | None = None
        if isinstance(attention, KernelAttention):
            self._fused = self._agreeing(fuse(model, attention))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        kernels: bool | None = None,
        trust_remote_code: bool = False,
    ) -> Decoder:
        """`load_weights` behind one call; `kernels`: see above. Raises `ModelError`."""
        model, shape = load_weights(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(model, shape, device, kernels=kernels)

    def close(self) -> None:
        """Let go of who computes with it: nobody, as long as it is whole."""

    @property
    def fused(self) -> bool:
        """Whether it runs without transformers' modules."""
        return self._fused is not None

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.model.dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        """What keys and values are kept in: the weights' type, as queries come in it."""
        return self.dtype if self.dtype in ELEMENTS else torch.float32

    @property
    def kv_head_dim(self) -> int:
        """Numbers of one head's key or value in the pool: the CPU's kernels fill vectors up."""
        return -(-self.shape.head_dim // LANES) * LANES if self._kernels else self.shape.head_dim

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block: keys and values of all layers."""
        numbers = self.shape.layers * self.shape.kv_heads * self.kv_head_dim * BLOCK_SIZE
        return 2 * numbers * self.kv_dtype.itemsize

    @property
    def _kv_layout(self) -> KVLayout:
        if not self._kernels:
            return KVLayout.ROWS
        group = self.shape.heads // self.shape.kv_heads
        return kv_layout(self.kv_dtype, head_dim=self.shape.head_dim, group=group, block_size=BLOCK_SIZE)

    def kv_pool(self, blocks: int) -> KVPool:
        """A pool of `blocks` blocks, in the order of dimensions that the device's attention reads."""
        return self._make_pool(
            layers=self.shape.layers,
            kv_heads=self.shape.kv_heads,
            head_dim=self.kv_head_dim,
            blocks=blocks,
            block_size=BLOCK_SIZE,
            dtype=self.kv_dtype,
            device=self.device,
            layout=self._kv_layout,
            clear_blocks=not self._kernels,
        )

    def batch(self, segments: Sequence[Segment]) -> RaggedBatch:
        """Lay segments out for `forward`."""
        return build_batch(segments, block_size=BLOCK_SIZE, device=self.device)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch, pool: KVPool) -> Tensor:
        """Logits [logit rows, vocab] of `batch.logit_rows`, in the model's own type; fills the pool."""
        if self._fused is not None:
            return self._fused.forward(batch, pool)
        with attending(Forward(self._attention.begin(batch, pool), self.shape.reaches)):
            output = self.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            )
        return output.logits[0]  # type: ignore[no-any-return]

    def _agreeing(self, fused: FusedDecoder | None) -> FusedDecoder | None:
        """The fused forward if it gives what the model's modules give, but for rounding."""
        if fused is None:
            return None
        pool = self.kv_pool(1)
        tokens = [number * 7919 % self.shape.vocab_size for number in range(12)]
        batch = self.batch([Segment(tokens[:9], 0, (0,), tokens[9:], (-1, 0, -1))])
        expected = self.forward(batch, pool).float()
        with torch.inference_mode():
            got = fused.forward(batch, pool).float()
        error = (got - expected).norm() / expected.norm()
        return fused if error < _FUSED_ERROR[self.dtype] else None
