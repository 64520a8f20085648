"""`transformers.generate` as a process: a JSON line with a prompt in, one with its text and times out.

A process of its own, because a thread pool that waits for work spins for a while and would slow what is
measured next to it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from paceline.engine.model import choose_device


class _Clock(BaseStreamer):
    """Notes when tokens come; the first thing `generate` puts is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Reference:
    """A model and its tokenizer, used as their documentation says."""

    def __init__(self, folder: str, dtype: str, *, chat: bool) -> None:
        self.device = choose_device("auto")
        self._chat = chat
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def answer(self, prompt: str, max_tokens: int) -> dict[str, object]:
        """Greedy text of one prompt."""
        clock = _Clock()
        begin = time.perf_counter()
        if self._chat:
            message = {"role": "user", "content": prompt}
            prompt = self._tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        inputs = self._tokenizer(prompt, add_special_tokens=not self._chat, return_tensors="pt")
        ids = inputs["input_ids"].to(self.device)
        made = self._model.generate(
            ids,
            attention_mask=inputs["attention_mask"].to(self.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
        )[0, ids.shape[1] :].tolist()
        return {
            "text": self._tokenizer.decode(made, skip_special_tokens=True),
            "token_ids": made,
            "first_s": clock.times[1] - begin,
            "seconds": clock.times[-1] - begin,
        }


@click.command()
@click.option("--model", required=True)
@click.option("--dtype", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--chat", is_flag=True)
def command(model: str, dtype: str, threads: int, chat: bool) -> None:
    """Serve standard input until it ends."""
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(threads)
    reference = Reference(model, dtype, chat=chat)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(reference.answer(asked["prompt"], asked["max_tokens"])), file=answers)


if __name__ == "__main__":
    command()
