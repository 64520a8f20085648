"""`transformers` as a process: JSON lines with prompts in, one with its text and times out for each.

A process of its own, because a thread pool that waits for work spins for a while and would slow what is
measured next to it. It answers one prompt after another with `generate`, or with --sessions many at once with
the manager behind `generate_batch`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import IO, Any

import click
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from paceline.engine.model import choose_device

_PAGE_TOKENS = 256
# Rows of a forward beside one for each session: prompts are read in pieces of this.
_PROMPT_ROWS = 512


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

    def __init__(self, folder: str, dtype: str, *, chat: bool, lookup: int | None) -> None:
        """`lookup`: tokens that prompt lookup guesses a step; None decodes plainly."""
        self.device = choose_device("auto")
        self._chat = chat
        self._lookup = lookup
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model = model.to(self.device).eval()

    def ids(self, prompt: str) -> list[int]:
        """A user's message in the model's template, or a plain prompt."""
        if self._chat:
            message = {"role": "user", "content": prompt}
            prompt = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(prompt, add_special_tokens=not self._chat)["input_ids"])

    @torch.inference_mode()
    def answer(self, prompt: str, max_tokens: int) -> dict[str, object]:
        """Greedy text of one prompt."""
        clock = _Clock()
        begin = time.perf_counter()
        ids = torch.tensor([self.ids(prompt)], device=self.device)
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            prompt_lookup_num_tokens=self._lookup,
            streamer=clock,
        )[0, ids.shape[1] :].tolist()
        return {
            "text": self.tokenizer.decode(made, skip_special_tokens=True),
            "token_ids": made,
            "first_s": clock.times[1] - begin,
            "seconds": clock.times[-1] - begin,
        }


def serve(reference: Reference, asked: Iterable[str], answers: IO[str]) -> None:
    """Answer one line after another."""
    for line in asked:
        request = json.loads(line)
        made = reference.answer(request["prompt"], request["max_tokens"])
        print(json.dumps({"id": request["id"], **made}), file=answers)


def serve_batched(
    reference: Reference, asked: Iterable[str], answers: IO[str], *, sessions: int, context: int
) -> None:
    """Answer lines as they come, up to `sessions` of at most `context` tokens at once, in any order."""
    manager = reference.model.init_continuous_batching(
        generation_config=GenerationConfig.from_model_config(reference.model.config),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=sessions * -(-context // _PAGE_TOKENS),
            max_batch_tokens=sessions + _PROMPT_ROWS,
            max_requests_per_batch=sessions,
            # Every arm reads every prompt anew.
            allow_block_sharing=False,
        ),
    )
    begun: dict[str, float] = {}

    def answer() -> None:
        for done in manager:
            if not done.is_finished():
                continue
            if done.error is not None:
                raise RuntimeError(done.error)
            seconds = time.perf_counter() - begun.pop(done.request_id)
            made = {
                "id": int(done.request_id),
                "text": reference.tokenizer.decode(done.generated_tokens, skip_special_tokens=True),
                "token_ids": done.generated_tokens,
                "first_s": seconds,
                "seconds": seconds,
            }
            print(json.dumps(made), file=answers)
        # Whoever waits for an answer is to learn that none will come.
        os._exit(1)

    manager.start()
    threading.Thread(target=answer, daemon=True).start()
    for line in asked:
        request = json.loads(line)
        begun[str(request["id"])] = time.perf_counter()
        manager.add_request(
            reference.ids(request["prompt"]), str(request["id"]), max_new_tokens=request["max_tokens"]
        )


@click.command()
@click.option("--model", required=True)
@click.option("--dtype", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--chat", is_flag=True)
@click.option("--lookup", type=int)
@click.option("--sessions", type=int)
@click.option("--context", type=int, default=8192)
def command(
    model: str, dtype: str, threads: int, chat: bool, lookup: int | None, sessions: int | None, context: int
) -> None:
    """Serve standard input until it ends."""
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(threads)
    reference = Reference(model, dtype, chat=chat, lookup=lookup)
    print(json.dumps({"id": None}), file=answers)
    if sessions is None:
        serve(reference, sys.stdin, answers)
    else:
        serve_batched(reference, sys.stdin, answers, sessions=sessions, context=context)


if __name__ == "__main__":
    command()
