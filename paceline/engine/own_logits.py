"""A model's own logits for some texts, computed before the engine's attention replaces its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Positions of the texts; the longest is more than a KV block.
SHORT, MIDDLE, LONG = 22, 47, 157
# Positions of the longest text where it has to be longer than a window.
LONGEST = 1024
# Rows at a text's end whose logits are compared, and how many of them stand in a tree.
TAIL, DEPTH = 6, 3
# Where the other branch leaves a text, counted from the root, and its tokens.
FORK, BRANCH = 2, 3
# Larger logits mark ids that a model never draws; they are left out.
_MEANT = 1e4
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")


class NotServedError(ValueError):
    """The engine does not compute this model; the message says what differs."""


@dataclass(frozen=True, slots=True)
class Text:
    """Ids, and the model's own logits of the last rows: `logits` [rows, vocab] float32 on the CPU."""

    token_ids: tuple[int, ...]
    logits: Tensor

    def row(self, position: int) -> int:
        """Index into `logits` of a position."""
        return position - (len(self.token_ids) - len(self.logits))


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """The model's own logits for some texts and for a branch of each."""

    texts: tuple[Text, ...]
    branches: tuple[Text, ...]
    # How far logits of the model's default attention and of its plain (eager) attention are apart.
    spread: float = 0.0
    # A window that the texts do not reach, or None.
    window_beyond: int | None = None

    @classmethod
    def of(cls, model: Any, *, context: int, longest: int = LONGEST) -> OwnLogits:
        """Compute them by a model whose own attention is in place. Raises `NotServedError` if that fails.

        `context`: the model's longest text; `longest`: the check's (`LONGEST`).
        """
        config = model.config.get_text_config(decoder=True)
        windows = [size for name in _WINDOWS if (size := getattr(config, name, None))]
        windows = [size for size in windows if isinstance(size, int) and size < context]
        reached = [size for size in windows if size + 2 * TAIL <= longest]
        lengths = [SHORT, MIDDLE, max([LONG, *(size + 2 * TAIL for size in reached)])]
        lengths = [min(length, context) for length in lengths]
        if lengths[0] <= TAIL + BRANCH:
            raise NotServedError(f"its context of {context} positions is too short to check")
        random = torch.Generator().manual_seed(0)
        # The ends of a vocabulary are special ids: padding, images.
        low, high = config.vocab_size // 8, config.vocab_size - config.vocab_size // 8
        texts, branches = [], []
        with _WideProducts() if model.device.type == "cpu" else nullcontext():
            for length in lengths:
                ids = torch.randint(low, high, (length,), generator=random).tolist()
                other = torch.randint(low, high, (BRANCH,), generator=random).tolist()
                texts.append(_ask(model, ids, TAIL))
                branches.append(_ask(model, [*ids[: length - TAIL + 1 + FORK], *other], BRANCH))
            spread = _spread(model, texts[0])
        beyond = [size for size in windows if size not in reached]
        return cls(tuple(texts), tuple(branches), spread, max(beyond, default=None))


def median_difference(got: Tensor, expected: Tensor) -> float:
    """Of rows [rows, vocab], relative to their spread; infinite where a number is none."""
    meant = expected.abs() < _MEANT
    spread = torch.where(meant, expected, torch.zeros(())).std(dim=-1) * expected.shape[-1] ** 0.5
    apart = torch.where(meant, got - expected, torch.zeros(())).norm(dim=-1)
    relative = (apart / spread.clamp(min=1e-20)).nan_to_num(nan=torch.inf)
    return float(relative.quantile(0.5, interpolation="higher"))


class _WideProducts(TorchFunctionMode):
    """Products of half-width numbers in float32: without a matrix unit torch takes seconds for them.

    Weights stay widened, up to `_KEPT_BYTES`: fresh memory for them at every text takes longer than the
    products.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._room = _KEPT_BYTES

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _PRODUCTS or not isinstance(args[0], Tensor) or args[0].dtype not in _HALF:
            return func(*args, **(kwargs or {}))
        wide = [self._wide(arg) for arg in args]
        named = {name: self._wide(arg) for name, arg in (kwargs or {}).items()}
        return func(*wide, **named).to(args[0].dtype)

    def _wide(self, argument: Any) -> Any:
        if type(argument) not in (Tensor, nn.Parameter) or argument.dtype not in _HALF:
            return argument
        if argument in self._kept:
            return self._kept[argument]
        wide = argument.float()
        if isinstance(argument, nn.Parameter) and wide.nbytes <= self._room:
            self._kept[argument] = wide
            self._room -= wide.nbytes
        return wide


# Most bytes of weights that are kept widened.
_KEPT_BYTES = 2 << 30
_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = (
    F.linear,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.bmm,
    Tensor.__matmul__,
)


@torch.inference_mode()
def _ask(model: Any, token_ids: Sequence[int], rows: int) -> Text:
    """The model's own logits of the last rows."""
    told: dict[str, Any] = {"input_ids": torch.tensor([token_ids], device=model.device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        told["logits_to_keep"] = rows
    logits = model(**told).logits[0, -rows:].float().cpu()
    return Text(tuple(token_ids), logits)


def _spread(model: Any, text: Text) -> float:
    """How far a text's logits move with plain (eager) attention."""
    chosen = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        return median_difference(_ask(model, text.token_ids, len(text.logits)).logits, text.logits)
    except (ValueError, ImportError):
        return 0.0
    finally:
        model.set_attn_implementation(chosen)
