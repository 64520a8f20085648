"""A Hugging Face decoder behind one call: rows in, logits of chosen rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.masking_utils import AttentionMaskInterface

from paceline.engine.attention import (
    NAME,
    AttentionError,
    Forward,
    attending,
    ragged_attention,
)
from paceline.engine.check import Report, blocks_for, check
from paceline.engine.devices import FusedForward, backend_of
from paceline.engine.engine import Engine, MirroredStep
from paceline.engine.kv import KVPool
from paceline.engine.layers import DecoderLayers
from paceline.engine.loading import ModelError, RefusedError, load_causal, one_line
from paceline.engine.own_attention import OWN_ATTENTION, adopt
from paceline.engine.own_logits import LONGEST, NotServedError, OwnLogits
from paceline.engine.rows import RaggedBatch, Segment, build_batch
from paceline.engine.shape import (
    ModelShape,
    check_layer_kinds,
    context_of,
    hold_rotation,
    is_told_positions,
    look,
    watched_mask,
)
from paceline.engine.states import StatePool

# Positions of one KV block, which is one chunk of attention.
BLOCK_SIZE = 128


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
    longest: int = LONGEST,
) -> tuple[PreTrainedModel, ModelShape, OwnLogits]:
    """A model from a folder or hub id, or this rank's share of it; dtype None keeps the checkpoint's own.

    Weights are read from safetensors only: other files are pickles, which run code as they are read.
    `trust_remote_code`: run Python code that comes with the model, where transformers has none for it.
    The model's own logits for the check's texts (`engine.check`, also for `longest`) are computed before the
    engine's attention replaces its own.

    Raises `ModelError` where transformers cannot load it as a causal decoder, or not divide it.
    """
    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, watched_mask)
    options: dict[str, Any] = {}
    try:
        config = _text_config(path, trust_remote_code)
        check_layer_kinds(config)
        attends_itself = config.model_type in OWN_ATTENTION
        if ranks > 1:
            _check_division(config, ranks)
            options["distributed_config"] = DistributedConfig(tp_size=ranks, tp_plan="auto")
        model = load_causal(path, dtype=dtype, trust_remote_code=trust_remote_code, **options)
        model.eval().requires_grad_(False).to(device)
        own = OwnLogits.of(model, context=context_of(config), longest=longest)
        if attends_itself:
            # The simplest mask; it is not read.
            model.set_attn_implementation("eager")
            adopt(model, context_of(config))
        else:
            model.set_attn_implementation(NAME)
        hold_rotation(model)
        shape = look(model, config, ranks=ranks)
    except ModelError:
        raise
    except (AttentionError, NotServedError) as error:
        raise RefusedError(config.model_type, one_line(error)) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {one_line(error)}") from error
    except Exception as error:
        # Any error of a model's code: its user needs to know that the model is not served.
        raise ModelError(f"{path} is not served: {one_line(error)}") from error
    return model, shape, own


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
        self, model: PreTrainedModel, shape: ModelShape, device: torch.device, *, backend: str | None = None
    ) -> None:
        """`backend`: the kind of device whose code computes (`devices.backend_of`); None: `device`'s own."""
        self.model = model
        self.shape = shape
        self.device = device
        self._backend = backend_of(backend or device.type)
        self._attention = self._backend.attention(heads=shape.heads)
        # A share's layers are transformers' own: collectives are part of them.
        self._meant_exact = shape.ranks == 1 and self._backend.pack_linears(model)
        self._fused: FusedForward | None = None
        self._kv_form = self._attention.kv_form(
            model.dtype, head_dim=shape.head_dim, kv_heads=shape.kv_heads, block_size=BLOCK_SIZE
        )
        self.report = Report(())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        backend: str | None = None,
        trust_remote_code: bool = False,
        longest: int = LONGEST,
    ) -> Decoder:
        """A checked decoder: `load_weights` and `verify` behind one call. Raises `ModelError`."""
        model, shape, own = load_weights(
            path, device=device, dtype=dtype, trust_remote_code=trust_remote_code, longest=longest
        )
        decoder = cls(model, shape, device, backend=backend)
        decoder.verify(own)
        return decoder

    def verify(self, own: OwnLogits, mirror: Callable[[MirroredStep], None] | None = None) -> None:
        """Hold all ways to serve against the model's own logits; take the fused forward if it passes.

        `mirror`: see `Engine`; the other ranks need as many blocks as `check.blocks_for` says.
        Raises `ModelError` where the engine does not compute the model.
        """
        kind = self.model.config.model_type
        try:
            self._fused = self._backend.fuse(self.model, self._attention)
            engine = Engine(self, blocks_for(own, self.block_size), mirror=mirror)
            self.report = check(engine, own)
            if self._fused is not None and not self.report.ok:
                self._fused = None
                self.report = check(engine, own)
        except (AttentionError, NotServedError) as error:
            raise RefusedError(kind, one_line(error)) from error
        except Exception as error:
            raise ModelError(f"{kind} models are not served: {one_line(error)}") from error
        finally:
            if self.device.type == "cuda":
                # What the check's pool took is counted when the pool that serves is sized.
                torch.cuda.empty_cache()
        if not self.report.ok:
            reason = self.report.complaint()
            if not is_told_positions(self.model):
                reason = "it counts its rows' positions by itself, and a batch's rows are those of many texts"
            raise RefusedError(kind, reason)

    @property
    def exact(self) -> bool:
        """Whether a token's bits are its own: meant to be, and seen by the check in every case."""
        return self._meant_exact and bool(self.report.cases) and self.report.bitwise

    @property
    def fused(self) -> bool:
        """Whether it runs without transformers' modules."""
        return self._fused is not None

    @property
    def block_size(self) -> int:
        """Positions of a KV block."""
        return BLOCK_SIZE

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.model.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block: keys and values of all layers."""
        numbers = self.shape.layers * self.shape.kv_heads * self._kv_form.head_dim * BLOCK_SIZE
        return 2 * numbers * self._kv_form.dtype.itemsize

    def kv_pool(self, blocks: int) -> KVPool:
        """A pool of `blocks` blocks, in the order of dimensions that the device's attention reads."""
        return KVPool(
            layers=self.shape.layers,
            kv_heads=self.shape.kv_heads,
            head_dim=self._kv_form.head_dim,
            blocks=blocks,
            block_size=BLOCK_SIZE,
            dtype=self._kv_form.dtype,
            device=self.device,
            layout=self._kv_form.layout,
            clear_blocks=self._kv_form.clear_blocks,
        )

    @cached_property
    def layers(self) -> DecoderLayers:
        """Where its hidden states are met, from a forward of two rows: all ranks take part in the first call.

        Raises `ModelError` where that cannot be told.
        """
        return DecoderLayers.of(self.model)

    def state_bytes(self, kept: int) -> int:
        """Bytes of one position's states of so many layers."""
        return kept * self.layers.width * self.dtype.itemsize if kept else 0

    def state_pool(self, layers: Sequence[int], blocks: int) -> StatePool:
        """A pool for states of these layers beside a KV pool of `blocks` blocks. Raises `ModelError`."""
        return StatePool(
            self.layers.checked(layers),
            blocks=blocks,
            block_size=BLOCK_SIZE,
            width=self.layers.width,
            dtype=self.dtype,
            device=self.device,
        )

    def batch(self, segments: Sequence[Segment]) -> RaggedBatch:
        """Lay segments out for `forward`."""
        return build_batch(segments, block_size=BLOCK_SIZE, device=self.device)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch, pool: KVPool, states: StatePool | None = None) -> Tensor:
        """Logits [logit rows, vocab] of `batch.logit_rows`, in the model's own type; fills both pools."""
        if self._fused is not None:
            return self._fused.forward(batch, pool, states)
        keeping: AbstractContextManager[None] = nullcontext()
        if states is not None:
            keeping = self.layers.telling(states.layers, partial(states.write, batch.slots))
        with keeping, attending(Forward(self._attention.begin(batch, pool), self.shape.reaches)):
            output = self.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            )
        return output.logits[0]  # type: ignore[no-any-return]
