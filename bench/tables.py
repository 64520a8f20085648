"""Tables that drafters start with: learned from texts that the model itself wrote."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.progress import track
from transformers import AutoTokenizer

from drafter_svc import methods
from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import CONTEXT_IDS, Hypothesis, Lesson, Row
from drafter_svc.methods.base import Teachable
from paceline.engine.model import Decoder
from paceline.session import SessionKey
from paceline.training.template import Template
from paceline.training.texts import Writing, answers
from paceline.training.writing import Scribe
from paceline.vocabulary import vocab_fingerprint

# Texts that are written at once.
_SESSIONS = 64
# Ids of the template around a question, more than any has.
_TEMPLATE_IDS = 128


def learn(method: Teachable, number: int, writing: Writing) -> None:
    """Show a method one text with the model's top ids, as a session of its own."""
    key = SessionKey(f"text {number}", 1)
    ids = [*writing.prompt, *writing.text]
    first = len(writing.prompt)
    session = Hypothesis(key, writing.sampling, writing.prompt)
    session.ids.extend(writing.text)
    rows = tuple(
        Row(tuple(ids[max(0, position - CONTEXT_IDS) : position]), top, position)
        for position, top in enumerate(writing.top_ids, start=first)
    )
    method.learn(session, Lesson(start=first, committed=tuple(writing.text), rows=rows))
    method.forget(key.session_id)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the model.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write to, as a drafter's --tables.",
)
@click.option(
    "--texts", type=click.IntRange(1), default=1024, show_default=True, help="Texts to write and learn from."
)
@click.option(
    "--question-tokens",
    type=click.IntRange(1),
    default=96,
    show_default=True,
    help="Most tokens of a question.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Most tokens of an answer.",
)
def command(model: Path, out: Path, texts: int, question_tokens: int, answer_tokens: int) -> None:
    """Write texts with a model and keep what drafters learn from them, for `paceline drafter --tables`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    decoder = Decoder.load(model, device=torch.device("cpu"), dtype=torch.bfloat16)
    longest = question_tokens + answer_tokens + _TEMPLATE_IDS
    if longest > decoder.shape.max_context:
        raise click.ClickException(
            f"texts of up to {longest} tokens do not fit the model's context of "
            f"{decoder.shape.max_context}: ask for fewer --question-tokens or --answer-tokens"
        )
    vocab = tokenizer.get_vocab()
    name = DrafterSettings.model_fields["method"].default
    method = methods.create(name, len(vocab))
    written = answers(
        Scribe(decoder, sessions=min(_SESSIONS, texts), longest=longest),
        Template(tokenizer),
        texts,
        question_tokens=question_tokens,
        answer_tokens=answer_tokens,
        top_k=methods.needs(name).feedback_top_k,
    )
    tokens = 0
    for number, writing in enumerate(track(written, total=texts, description="writing")):
        learn(method, number, writing)
        tokens += len(writing.text)
    path = methods.tables.save(method, out, vocab_fingerprint(vocab))
    click.echo(f"{path}: {tokens} tokens of {texts} texts")


if __name__ == "__main__":
    command()
