"""Training's unrolled passes are what a drafter computes token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.heads.eagle import EagleConfig, EagleHead
from paceline.training.unroll import soft_cross_entropy, unrolled

CONFIG = EagleConfig(
    layers=(0, 1, 2), width=32, inner=48, heads=4, kv_heads=2, head_dim=8, draft_vocab=16, vocab=64
)
ROWS, PASSES = 9, 4


def drafted(head: EagleHead, embedded: Tensor, states: Tensor, last: int) -> list[Tensor]:
    """Output states of a chain drafted where the target's states end with row `last`, a row at a time."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outputs: list[Tensor] = []
    for row in range(last + PASSES):
        state = head.fuse(states[row]) if row <= last else outputs[-1]
        query, key, value = head.project(embedded[row], state, torch.tensor(row))
        keys.append(key)
        values.append(value)
        attended = []
        for number, one in enumerate(query):
            shared = number // (CONFIG.heads // CONFIG.kv_heads)
            scores = torch.stack([one @ key[shared] for key in keys]) * CONFIG.head_dim**-0.5
            attended.append(scores.softmax(0) @ torch.stack([value[shared] for value in values]))
        outputs.append(head.finish(torch.stack(attended), state))
    return outputs[last:]


def test_each_pass_is_one_more_token_of_a_chain() -> None:
    torch.manual_seed(1)
    head = EagleHead(CONFIG)
    embedded, states = torch.randn(ROWS, 32), torch.randn(ROWS, 3, 32)

    passes = list(unrolled(head, embedded[None], states[None], PASSES))

    assert [out.shape for out in passes] == [(1, ROWS - number, 32) for number in range(PASSES)]
    for last in range(ROWS - PASSES + 1):
        chain = drafted(head, embedded, states, last)
        for number, (out, expected) in enumerate(zip(passes, chain, strict=True)):
            # Row last + number is index `last` of pass `number`.
            torch.testing.assert_close(out[0, last], expected, msg=f"row {last}, pass {number}")


def test_the_loss_and_its_gradient_are_those_of_cross_entropy() -> None:
    torch.manual_seed(2)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    wanted = torch.softmax(torch.randn(5, 7), -1).double()
    again = logits.detach().clone().requires_grad_()

    soft_cross_entropy(logits, wanted).sum().backward()
    torch.nn.functional.cross_entropy(again, wanted, reduction="sum").backward()

    torch.testing.assert_close(logits.grad, again.grad, rtol=1e-5, atol=1e-6)
