"""Whole runs: texts written, a head or a draft model trained, its card made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline.cli.console import cache_folder
from paceline.cli.model import resolve
from paceline.engine.fingerprint import weights_fingerprint
from paceline.engine.model import Decoder, choose_device
from paceline.heads import store
from paceline.models.store import LocalModel
from paceline.training import batches, draft, eagle
from paceline.training.card import Checked, card, markdown
from paceline.training.corpus import Corpus, CorpusError, Origin, Text, read
from paceline.training.evaluated import Dataset
from paceline.training.jobs import KINDS, job
from paceline.training.loop import Budget, Learner, Progress, Training
from paceline.training.states import Recorder
from paceline.training.template import Template
from paceline.training.writing import Scribe
from paceline.vocabulary import vocab_fingerprint

# Texts of each kind that curves are measured on.
_CHECKED_TEXTS: Final = 24
_CHECK_SESSIONS: Final = 8

Told = Callable[[Progress, float], None]


@dataclass(frozen=True)
class Target:
    """The model that drafters are trained for."""

    local: LocalModel
    device: torch.device
    seed: int
    longest: int

    @classmethod
    def find(cls, *, model: str | None, seed: int, threads: int | None, device: str, longest: int) -> Target:
        """Fetch it where needed; threads are this process's."""
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        return cls(resolve(model), choose_device(device), seed, longest)

    @property
    def texts_file(self) -> Path:
        """Where its texts are kept unless somebody says otherwise."""
        return cache_folder() / "training" / f"{self.local.name}.ids"

    @cached_property
    def template(self) -> Template:
        """Its chat template."""
        return Template(AutoTokenizer.from_pretrained(self.local.folder))

    @cached_property
    def vocab(self) -> str:
        """Fingerprint of its vocabulary, in hex."""
        return vocab_fingerprint(AutoTokenizer.from_pretrained(self.local.folder).get_vocab())

    @cached_property
    def module(self) -> Any:
        """It, as transformers computes it."""
        dtype = torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(self.local.folder, dtype=dtype)
        return model.eval().requires_grad_(False).to(self.device)

    def scribe(self, sessions: int) -> Scribe:
        """It, ready to write."""
        decoder = Decoder.load(self.local.folder, device=self.device, dtype=torch.bfloat16)
        return Scribe(decoder, sessions=sessions, longest=min(self.longest, decoder.shape.max_context))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained on, for how long, and where it goes."""

    out: Path
    texts: Path
    tokens: int
    minutes: float
    batch_tokens: int
    memory_gib: float
    dataset: Path | None
    resume: bool

    @property
    def checkpoint(self) -> Path:
        """The file that training goes on from."""
        return self.out.with_name(self.out.name + ".checkpoint")


def write_texts(
    target: Target, path: Path, tokens: int, sessions: int, told: Callable[[int, int, int], None]
) -> int:
    """Add texts to a file until it holds `tokens` distinct ones, and say how many it holds.

    `told` hears after each step how many ids it wrote, and how many texts and distinct ids the file has.
    Raises `CorpusError` where the file holds others' texts.
    """
    corpus = Corpus(path, Origin(target.vocab, KINDS, target.seed))
    try:
        if corpus.written >= tokens:
            return corpus.written
        # Jobs that were not done when the process ended are given up: their numbers are behind.
        jobs = (
            job(target.template, number, seed=target.seed, longest=target.longest)
            for number in count(corpus.next_job)
        )
        scribe = target.scribe(sessions)
        for texts in scribe.write(jobs, lambda ids: told(ids, corpus.texts, corpus.written)):
            corpus.add(texts)
            if corpus.written >= tokens:
                break
        return corpus.written
    finally:
        corpus.close()


class _Material:
    """Texts, by what they are for. Those that somebody adds to the file come with the next epoch."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self._target = target
        self._path = plan.texts
        self._dataset = None if plan.dataset is None else Dataset.read(plan.dataset)
        self.checked: Checked | None = None
        self.training, held_out = self._divided()
        self.checks = {"train": self.training[-_CHECKED_TEXTS:], "held_out": held_out[-_CHECKED_TEXTS:]}
        if self._dataset is not None:
            self.checks["dataset"] = self._dataset.answers(
                target.template, target.scribe(_CHECK_SESSIONS), _CHECKED_TEXTS, target.longest
            )

    def _divided(self) -> tuple[list[Text], list[Text]]:
        origin, texts = read(self._path)
        if origin.vocab != self._target.vocab:
            raise CorpusError(f"{self._path} holds texts of another vocabulary than the target's")
        if self._dataset is not None:
            texts, self.checked = self._dataset.without_shared(texts, self._target.template)
        training, held_out = batches.divide(texts)
        if not training:
            raise CorpusError(f"{self._path} holds no texts to train on")
        return training, held_out

    def epoch(self) -> list[Text]:
        """Texts to train on, as many as there are now."""
        self.training, _ = self._divided()
        return self.training


def train_eagle(
    target: Target,
    plan: Plan,
    told: Told,
    arguments: Sequence[str],
    *,
    passes: int,
    layers: tuple[int, ...] | None,
    draft_vocab: int,
) -> dict[str, Any]:
    """Train a head, save it at `plan.out`, and return its card. Raises `ValueError`, `CorpusError`."""
    material = _Material(target, plan)
    config = target.module.config.get_text_config()
    chosen = layers or eagle.default_layers(config.num_hidden_layers)
    tokens = eagle.frequent(material.training, min(draft_vocab, config.vocab_size), config.vocab_size)
    head = eagle.begin(target.module, chosen, tokens, seed=target.seed)
    recorder = _recorder(target, plan, chosen)
    learner = eagle.EagleLearner(head, target.module, recorder, passes=passes)
    settings = {"passes": passes, "layers": chosen, "draft_vocab": len(tokens)}
    made = _run(target, plan, told, arguments, "EAGLE head", learner, material, settings)
    store.save(head, plan.out, weights_fingerprint=made["weights_fingerprint"], card=made)
    _write_card(plan.out.with_suffix(".md"), made)
    return made


def train_draft(
    target: Target, plan: Plan, told: Told, arguments: Sequence[str], *, layers: int
) -> dict[str, Any]:
    """Train a draft model, save it in `plan.out`, and return its card. Raises `ValueError`, `CorpusError`."""
    material = _Material(target, plan)
    model = draft.cut(target.module, layers)
    learner = draft.DraftLearner(model, target.module, _recorder(target, plan, ()))
    made = _run(target, plan, told, arguments, "Draft model", learner, material, {"layers": layers})
    model.to(torch.bfloat16).save_pretrained(plan.out)
    AutoTokenizer.from_pretrained(target.local.folder).save_pretrained(plan.out)
    (plan.out / "card.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    _write_card(plan.out / "README.md", made)
    return made


def _recorder(target: Target, plan: Plan, layers: tuple[int, ...]) -> Recorder:
    return Recorder(target.module, layers, kept_bytes=int(plan.memory_gib * 2**30), longest=target.longest)


def _run(
    target: Target,
    plan: Plan,
    told: Told,
    arguments: Sequence[str],
    method: str,
    learner: Learner,
    material: _Material,
    settings: dict[str, Any],
) -> dict[str, Any]:
    budget = Budget(plan.tokens, plan.minutes, plan.batch_tokens, target.seed)
    training = Training(learner, material.epoch, material.checks, budget, plan.checkpoint)
    if plan.resume:
        training.resume()
    progress = training.run(told)
    settings = {**settings, "seed": target.seed, "batch_tokens": plan.batch_tokens, "longest": target.longest}
    return card(
        method=method,
        arguments=arguments,
        target=target.local.name,
        weights_fingerprint=weights_fingerprint(target.local.folder),
        texts_file=plan.texts,
        texts=material.training,
        checked=material.checked,
        settings=settings,
        progress=progress,
        device=target.device,
    )


def _write_card(path: Path, made: dict[str, Any]) -> None:
    path.write_text(markdown(made), encoding="utf-8")
