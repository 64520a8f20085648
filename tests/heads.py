"""A small head, trained on the spot, and texts that nothing but their states foretells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from paceline.features import FeatureGrant
from paceline.heads.eagle import EagleConfig, EagleHead
from paceline.training.unroll import unrolled

VOCAB = 32
# The head knows these alone.
KNOWN = range(4, 28)
WIDTH = VOCAB
LAYERS = (1, 2, 4)
GRANT = FeatureGrant((1, 2, 3, 4), WIDTH, "float32")
_PASSES = 3


def embedding() -> Tensor:
    """The target's: one number of a token is 1. [VOCAB, WIDTH]"""
    return torch.eye(VOCAB)


def text(seed: int, length: int) -> list[int]:
    """Random tokens: only states tell what comes next."""
    return Random(seed).choices(KNOWN, k=length)


def foretelling(ids: Sequence[int]) -> Tensor:
    """States [ids, layers of `GRANT`, WIDTH]: of position p the embeddings of tokens p + 2 to p + 4.

    They are of the layers that the head reads; the other layer's are noise.
    """
    padded = functional.pad(embedding()[list(ids)], (0, 0, 0, 2 + len(LAYERS)))
    states = torch.randn(len(ids), 4, WIDTH, generator=torch.Generator().manual_seed(len(ids)))
    for place, layer in enumerate(LAYERS):
        states[:, GRANT.layers.index(layer)] = padded[2 + place : 2 + place + len(ids)]
    return states


def untrained_head() -> EagleHead:
    """Random weights."""
    head = EagleHead(
        EagleConfig(
            layers=LAYERS,
            width=WIDTH,
            inner=2 * WIDTH,
            heads=4,
            kv_heads=2,
            head_dim=16,
            draft_vocab=len(KNOWN),
            vocab=VOCAB,
        )
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head.tokens.copy_(torch.tensor(KNOWN))
        for weight in head.parameters():
            if weight.dim() == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
    return head.eval()


@cache
def _trained() -> dict[str, Tensor]:
    head = untrained_head().train()
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    columns = [GRANT.layers.index(layer) for layer in LAYERS]
    for step in range(150):
        texts = [text(16 * step + number, 24) for number in range(16)]
        ids = torch.tensor(texts)
        states = torch.stack([foretelling(each) for each in texts])[:, :-1, columns]
        loss = torch.zeros(())
        for number, state in enumerate(unrolled(head, embedding()[ids[:, 1:]], states, _PASSES)):
            wanted = ids[:, 2 + number :] - KNOWN[0]
            loss = loss + functional.cross_entropy(head.logits(state[:, :-1]).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.state_dict()


def trained_head() -> EagleHead:
    """A head that reads the next tokens from such states. Trained in some seconds, once a process."""
    head = untrained_head()
    head.load_state_dict(_trained())
    return head.requires_grad_(False)
