"""Whether tiny models of transformers' architectures are served as transformers computes them.

A family's model has random float32 weights. It is loaded as a verifier loads it, with the check that refuses
what the engine does not compute, and answers greedily on the CPU: each prompt alone, all in one batch, and
all drafted, right and wrong tokens in a tree. `transformers.generate` says what is right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from bench.engine_loop import EngineLoop, Running, generate
from bench.families import FAMILIES, make_family_model
from bench.tiny_sizes import VOCAB
from paceline import __version__
from paceline.engine.loading import RefusedError, one_line
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree

# Tokens of a prompt; with an answer the longest goes from one block of KV into the next.
PROMPT_LENGTHS = (1, 7, 40, 120)
# Tokens of an answer, and those of it that a tree guesses.
COUNT, DEPTH = 24, 3
# Fewest different tokens in all answers for which a comparison says enough.
_DULL = 6
_BLOCKS_EACH = 2
HEADER = ("family", "configuration", "what it has", "text", "exact")

Ids = list[int]
_Drafter = Callable[[Running], TokenTree]


@dataclass(frozen=True, slots=True)
class Row:
    """Result of one family."""

    family: str
    # Ways of serving whose text differed from that of `transformers.generate`.
    wrong: tuple[str, ...] = ()
    # Whether the check saw the same bits in every way to serve.
    exact: bool = False
    # Why the engine refused it.
    refused: str = ""
    # An exception that is not a refusal.
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was served right, or refused with a reason."""
        return not self.wrong and not self.fault

    @property
    def served(self) -> bool:
        """Whether it was served right."""
        return self.ok and not self.refused

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADER`."""
        family = FAMILIES[self.family]
        text = "same"
        if self.fault:
            text = f"FAULT: {self.fault}"
        elif self.refused:
            text = f"refused: {self.refused}"
        elif self.wrong:
            text = f"WRONG {', '.join(self.wrong)}"
        exact = ("yes" if self.exact else "no") if self.served else ""
        return self.family, f"{family.name}Config", family.special, text, exact


def markdown(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def run(
    family: str,
    folder: Path,
    *,
    backend: str | None = None,
    ways: Sequence[str] = ("alone", "batched", "drafted"),
) -> Row:
    """Make the family's model in `folder`, serve it and compare; whatever is raised becomes a row.

    `backend`: see `Decoder`.
    """
    try:
        make_family_model(folder, family)
        decoder = Decoder.load(folder, device=torch.device("cpu"), dtype=torch.float32, backend=backend)
        prompts = [ids for ids in _prompts() if len(ids) + COUNT <= decoder.shape.max_context]
        expected = _by_transformers(folder, prompts)
        if len({token for text in expected for token in text}) <= _DULL:
            return Row(family, fault="its texts are too dull to tell engines apart")
        wrong = tuple(way for way in ways if _WAYS[way](decoder, prompts, expected) != expected)
        return Row(family, wrong, decoder.exact)
    except RefusedError as error:
        return Row(family, refused=error.reason)
    except Exception as error:
        # The table says so, and goes on with the next family.
        return Row(family, fault=one_line(error))


def _prompts() -> list[Ids]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def _by_transformers(folder: Path, prompts: Sequence[Ids]) -> list[Ids]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Nothing ends a text early.
    model.generation_config = GenerationConfig(pad_token_id=0)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False)
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def _alone(decoder: Decoder, prompts: Sequence[Ids], expected: Sequence[Ids]) -> list[Ids]:
    return [text for prompt in prompts for text in _answers(decoder, [prompt])]


def _batched(decoder: Decoder, prompts: Sequence[Ids], expected: Sequence[Ids]) -> list[Ids]:
    return _answers(decoder, prompts)


def _drafted(decoder: Decoder, prompts: Sequence[Ids], expected: Sequence[Ids]) -> list[Ids]:
    return _answers(decoder, prompts, drafter(prompts, expected))


_WAYS: dict[str, Callable[[Decoder, Sequence[Ids], Sequence[Ids]], list[Ids]]] = {
    "alone": _alone,
    "batched": _batched,
    "drafted": _drafted,
}


def drafter(prompts: Sequence[Ids], expected: Sequence[Ids]) -> _Drafter:
    """Drafts `DEPTH` right tokens and a wrong one before each."""
    truth = {tuple(prompt): text for prompt, text in zip(prompts, expected, strict=True)}

    def draft(session: Running) -> TokenTree:
        done = len(session.token_ids) - session.prompt_length
        rest = truth[tuple(session.token_ids[: session.prompt_length])][done : done + DEPTH]
        tokens, parents, parent = [], [], -1
        for token in rest:
            tokens += [(token + 1) % VOCAB, token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return TokenTree(tuple(tokens), tuple(parents), (-1.0,) * len(tokens))

    return draft


def _answers(
    decoder: Decoder, prompts: Sequence[Ids], draft: _Drafter = lambda session: TokenTree()
) -> list[Ids]:
    sampling = SamplingParams(max_tokens=COUNT)
    sessions = [Running(list(prompt), len(prompt), sampling) for prompt in prompts]
    return generate(EngineLoop.of(decoder, _BLOCKS_EACH * len(prompts)), sessions, COUNT, draft)


@contextmanager
def tiny_and_quiet() -> Iterator[None]:
    """One thread, which is the fastest for tiny models; nothing from transformers but errors."""
    threads = torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    "families",
    multiple=True,
    metavar="FAMILY",
    type=click.Choice(list(FAMILIES)),
    help="Run this family only. Repeatable.",
)
def command(families: tuple[str, ...]) -> None:
    """Serve a tiny model of every architecture and print which texts are those of `transformers.generate`.

    The table of docs/models.md. Exits with 1 where a text is wrong or anything but a refusal was raised.
    """
    rows = []
    click.echo(
        f"Paceline {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        "float32 on the CPU, greedy\n"
    )
    click.echo(markdown(HEADER))
    click.echo(markdown(["---"] * len(HEADER)))
    with tiny_and_quiet(), tempfile.TemporaryDirectory() as folder:
        for family in families or FAMILIES:
            rows.append(run(family, Path(folder) / family))
            click.echo(markdown(rows[-1].cells()))
    served, failed = (sum(map(of, rows)) for of in (lambda row: row.served, lambda row: not row.ok))
    click.echo(f"\n{served} served, {len(rows) - served - failed} refused, {failed} wrong or at fault")
    if failed:
        raise SystemExit(1)
