"""A recorded target for simulations: its greedy text, its top ids, and its answers to tree rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

TOP_K = 8


@dataclass(frozen=True, slots=True)
class Recording:
    """One prompt's greedy continuation; `top_ids[i]` are the target's best ids for `text[i]`."""

    task: str
    prompt: tuple[int, ...]
    text: tuple[int, ...]
    top_ids: tuple[tuple[int, ...], ...]


def questions(dataset: Path, per_task: int, offset: int) -> Iterator[tuple[str, str]]:
    """(task, first turn) of `per_task` questions of each task, evenly spread from `offset` on.

    Spec-Bench's eight MT-bench categories count as one task.
    """
    tasks: dict[str, list[str]] = {}
    others = ("translation", "summarization", "qa", "math_reasoning", "rag")
    with dataset.open(encoding="utf-8") as lines:
        for line in lines:
            question = json.loads(line)
            category = question["category"]
            tasks.setdefault(category if category in others else "mt_bench", []).append(question["turns"][0])
    for task, turns in tasks.items():
        step = max(1, len(turns) // per_task)
        for index in range(per_task):
            yield task, turns[(index * step + offset) % len(turns)]


class Target:
    """The real model: greedy texts once, then top ids of any row of a draft tree."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if self._tokenizer.pad_token is None:
            # What is padded is masked, so any token will do.
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(0)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model.train(False)
        self._cache: Any = None
        self._length = 0

    @torch.inference_mode()
    def record(self, asked: Sequence[tuple[str, str]], max_tokens: int) -> list[Recording]:
        """Greedy continuations of every (task, user message), in batches padded on the left."""
        recordings = []
        self._tokenizer.padding_side = "left"
        for start in range(0, len(asked), 10):
            batch = asked[start : start + 10]
            prompts = [self.prompt(turn, chat=True) for _, turn in batch]
            padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
            out = self._model.generate(**padded, max_new_tokens=max_tokens, do_sample=False)
            width = padded["input_ids"].shape[1]
            end = self._model.generation_config.eos_token_id
            for (task, _), prompt, row in zip(batch, prompts, out[:, width:].tolist(), strict=True):
                text = row[: row.index(end) + 1] if end in row else row
                recordings.append(Recording(task, tuple(prompt), tuple(text), self._top(prompt, text)))
        return recordings

    def prompt(self, turn: str, *, chat: bool) -> list[int]:
        """Ids of a user's message in the model's template, or of a plain prompt: as the gateway has them."""
        if chat:
            message = {"role": "user", "content": turn}
            turn = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(turn, add_special_tokens=not chat)["input_ids"])

    @torch.inference_mode()
    def known(self, task: str, prompt: Sequence[int], text: Sequence[int]) -> Recording:
        """The recording of a continuation that somebody else has made."""
        return Recording(task, tuple(prompt), tuple(text), self._top(list(prompt), list(text)))

    def _top(self, prompt: list[int], text: list[int]) -> tuple[tuple[int, ...], ...]:
        ids = torch.tensor([prompt + text[:-1]])
        logits = self._model(ids, logits_to_keep=len(text)).logits[0]
        return tuple(tuple(row) for row in logits.topk(TOP_K).indices.tolist())

    @torch.inference_mode()
    def load(self, recording: Recording) -> None:
        """Fill the cache with the recording's whole text, for `rows`."""
        ids = recording.prompt + recording.text
        self._cache = DynamicCache()
        self._model(torch.tensor([ids]), past_key_values=self._cache, logits_to_keep=1)
        self._length = len(ids)

    @property
    def width(self) -> int:
        """Numbers of a hidden state of one layer."""
        return int(self._model.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of its output layer."""
        return int(self._model.config.vocab_size)

    @torch.inference_mode()
    def states(self, ids: Sequence[int], layers: Sequence[int]) -> torch.Tensor:
        """Hidden states [ids, layers, width]; 0 is the embedding's output, the last is before the norm."""
        last: list[torch.Tensor] = []
        norm = self._model.model.norm
        hook = norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
        try:
            out = self._model.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        finally:
            hook.remove()
        states = [*out.hidden_states[:-1], last[0]]
        return torch.stack([states[layer][0] for layer in layers], dim=1)

    @torch.inference_mode()
    def rows(self, base: int, tokens: Sequence[int], parents: Sequence[int]) -> list[tuple[int, ...]]:
        """Top ids after each node of a tree on the first `base` ids of the loaded text."""
        count = len(tokens)
        mask = torch.full((1, 1, count, self._length + count), torch.finfo(torch.bfloat16).min)
        mask = mask.to(torch.bfloat16)
        mask[..., :base] = 0
        positions: list[int] = []
        for node, parent in enumerate(parents):
            if parent >= 0:
                mask[0, 0, node, self._length :] = mask[0, 0, parent, self._length :]
            mask[0, 0, node, self._length + node] = 0
            positions.append(base if parent < 0 else positions[parent] + 1)
        logits = self._model(
            torch.tensor([list(tokens)]),
            attention_mask=mask,
            position_ids=torch.tensor([positions]),
            past_key_values=self._cache,
        ).logits[0]
        self._cache.crop(-count)
        return [tuple(row) for row in logits.topk(TOP_K).indices.tolist()]
