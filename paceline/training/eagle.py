"""Training of an EAGLE-3-type head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from paceline.heads.eagle import EagleConfig, EagleHead
from paceline.training.corpus import Text
from paceline.training.loop import Figures
from paceline.training.states import Batch, Recorder
from paceline.training.unroll import soft_cross_entropy, unrolled

# A pass counts this much of the one before.
_DECAY: Final = 0.8
# Of AdamW, and of Muon, which needs half as many tokens.
_RATE: Final = 1e-3
_MUON_RATE: Final = 0.02


def default_layers(count: int) -> tuple[int, ...]:
    """An early layer, a middle one and a late one of `count`, or those that there are below the last."""
    return tuple(sorted({min(2, count - 1), count // 2, max(count - 3, 0)}))


def frequent(texts: Iterable[Text], count: int, vocab: int) -> list[int]:
    """The ids that texts have most of, ascending; the lowest ids fill up where texts have too few."""
    seen = Counter(token for text in texts for token in text.ids)
    ranked = sorted(range(vocab), key=lambda token: (-seen[token], token))
    return sorted(ranked[:count])


def begin(target: Any, layers: tuple[int, ...], tokens: Sequence[int], *, seed: int) -> EagleHead:
    """A head to train: its output layer and norm are the target's, the rest is random."""
    config = target.config.get_text_config()
    heads = config.num_attention_heads
    head = EagleHead(
        EagleConfig(
            layers=layers,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            draft_vocab=len(tokens),
            vocab=config.vocab_size,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.tokens.copy_(torch.tensor(tokens))
        for name, weight in head.named_parameters():
            if weight.dim() == 2:
                small = 0.25 if name.startswith(("o.", "down.")) else 1.0
                weight.normal_(0, small * weight.shape[1] ** -0.5, generator=generator)
        head.head.weight.copy_(target.get_output_embeddings().weight[head.tokens].float())
        norm = getattr(target.base_model, "norm", None)
        if norm is not None:
            head.norm.weight.copy_(norm.weight.float())
    return head


class EagleLearner:
    """A head, its target, and the loss between them."""

    def __init__(self, head: EagleHead, target: Any, recorder: Recorder, *, passes: int) -> None:
        self.module = head.to(recorder.device)
        self.recorder = recorder
        self._passes = passes
        self._embedding = target.get_input_embeddings().weight.detach()
        self._output = target.get_output_embeddings().weight.detach()[head.tokens].clone()
        self._place = torch.full((head.config.vocab,), -1, device=recorder.device)
        self._place[head.tokens] = torch.arange(head.config.draft_vocab, device=recorder.device)

    def length(self, text: Text) -> int:
        """Ids of a text that are used."""
        return self.recorder.length(text)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside, AdamW for the output layer and the norms."""
        inside: list[Tensor] = []
        rest: list[Tensor] = []
        for name, weight in self.module.named_parameters():
            (inside if weight.dim() == 2 and not name.startswith("head.") else rest).append(weight)
        return [
            torch.optim.Muon(inside, lr=_MUON_RATE, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.01),
        ]

    def loss(self, texts: Sequence[Text]) -> Tensor:
        """Cross entropy of all passes against the target, summed with weights that fall."""
        batch = self.recorder.batch(texts)
        rows = self._rows(batch)
        wanted = torch.softmax((batch.final[:, 1:][rows] @ self._output.T).float(), -1)
        total = torch.zeros((), device=wanted.device)
        weights = 0.0
        with torch.autocast(wanted.device.type, torch.bfloat16):
            for number, state in enumerate(self._unrolled(batch)):
                taken = rows.clone()
                taken[:, :number] = False
                chosen = taken[:, number:]
                if not chosen.any():
                    break
                losses = soft_cross_entropy(self.module.logits(state[chosen]), wanted[taken[rows]])
                total = total + _DECAY**number * losses.mean()
                weights += _DECAY**number
        return total / weights

    def _rows(self, batch: Batch) -> Tensor:
        """Rows [texts, ids - 1] to learn from: a next but one token is there, and the head can name it."""
        count = batch.ids.shape[1]
        there = torch.arange(count - 1, device=batch.ids.device) + 2 < batch.lengths[:, None]
        return there & (self._place[_behind(batch.ids)] >= 0)

    def _unrolled(self, batch: Batch) -> Iterable[Tensor]:
        embedded = self._embedding[batch.ids[:, 1:]]
        return unrolled(self.module, embedded, batch.states[:, :-1], self._passes)

    @torch.no_grad()
    def measure(self, batches: Sequence[Sequence[Text]]) -> Figures:
        """On answers: `first` and `first4`, how often the first drafted token is the text's, or one of the
        best four; `chain`, tokens a step when one chain of as many tokens as there are passes is drafted.
        """
        bases = first = first4 = accepted = 0
        for texts in batches:
            batch = self.recorder.batch(texts)
            behind = _behind(batch.ids)
            count = batch.ids.shape[1]
            there = torch.arange(count - 1, device=behind.device) + 2 < batch.lengths[:, None]
            there[:, :-1] &= batch.answers[:, 2:]
            going: Tensor | None = None
            with torch.autocast(behind.device.type, torch.bfloat16):
                for number, state in enumerate(self._unrolled(batch)):
                    best = self.module.tokens[self.module.logits(state).topk(4).indices]
                    right = (best == behind[:, number:, None]) & there[:, number:, None]
                    if going is None:
                        bases += int(there.sum())
                        first4 += int(right.any(-1).sum())
                        going = right[..., 0]
                        first += int(going.sum())
                    else:
                        going = going[:, :-1] & right[..., 0]
                    accepted += int(going.sum())
        bases = max(bases, 1)
        return {"first": first / bases, "first4": first4 / bases, "chain": 1 + accepted / bases}


def _behind(ids: Tensor) -> Tensor:
    """The token that each row [texts, ids - 1] tells; 0 where the text has none."""
    return torch.nn.functional.pad(ids[:, 2:], (0, 1))
