"""Drafts with a small language model of the target's vocabulary, on the engine that serves targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoTokenizer

from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import Ask, Method, MethodFactory, Needs, Target, UnfitError
from drafter_svc.neural.choice import Wish, choose
from drafter_svc.neural.contexts import IDLE_BATCHES, Context, Contexts, follow
from drafter_svc.neural.devices import device_of, dtype_of, take_threads
from drafter_svc.neural.growth import CHILDREN, NOTHING, WIDTH, Bounds, Candidates, Level, grow
from paceline.engine.engine import Engine
from paceline.engine.loading import ModelError, one_line
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.tree import TokenTree
from paceline.vocabulary import vocab_fingerprint

NAME = "draft"
# Levels of a first tree, as EAGLE-2's. A larger one goes as deep as it is asked for.
FIRST_DEPTH = 7
# Rows of long texts in one batch, beside the trees', by kind of device; and how many of a text's last rows
# are computed together with the first level of its tree.
TEXT_ROWS = {"cpu": 512, "cuda": 4096}
_LAST_ROWS = 64


class DraftModel(Method):
    """A language model that grows trees level by level, with the noise of the session's own seed."""

    name = NAME

    def __init__(
        self,
        engine: Engine,
        vocab_size: int,
        *,
        children: int = CHILDREN,
        width: int = WIDTH,
        idle_batches: int = IDLE_BATCHES,
    ) -> None:
        """`engine` is this method's own; `vocab_size` is the target's.

        `children`: most of one node; `width`: most nodes that are grown of a level.
        """
        self._engine = engine
        self._contexts = Contexts(engine.blocks, engine.block_size, Context, idle_batches=idle_batches)
        self._vocab_size = vocab_size
        self._children, self._width = children, width
        self._text_rows = TEXT_ROWS.get(engine.device.type, TEXT_ROWS["cuda"])

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """See `Method.draft`. A session whose text is not computed yet gets a part of it, and no tree."""
        self._contexts.begin_batch()
        places = [
            _Place(ask, self._contexts.use(ask.session.key.session_id, ask.session.ids, ask.length))
            for ask in asks
        ]
        try:
            return self._draft(places)
        except Exception:
            for ask in asks:
                self._contexts.lose(ask.session.key.session_id)
            raise

    def _draft(self, places: Sequence[_Place]) -> list[TokenTree]:
        follow(self._engine, ((place.context, place.ask.length) for place in places))
        ready = self._read(places)
        growths = [place.context.growth_of(place.ask.length, self._bounds(place.ask)) for place in ready]
        trees = grow(growths, lambda levels: self._step(ready, levels))
        drafted = {id(place): tree for place, tree in zip(ready, trees, strict=True)}
        return [drafted.get(id(place), TokenTree()) for place in places]

    def forget(self, session_id: str) -> None:
        """See `Method.forget`. What was computed of the text is kept while there is room."""
        self._contexts.drop(session_id)

    def _bounds(self, ask: Ask) -> Bounds:
        depth = ask.depth if ask.sent.tokens else min(ask.depth, FIRST_DEPTH)
        # The deepest nodes have no row.
        return Bounds(ask.nodes, min(depth, self._engine.shape.max_context - ask.length + 1), self._width)

    def _read(self, places: Sequence[_Place]) -> list[_Place]:
        """Compute parts of long texts; those that are left with few rows are ready for a tree."""
        ready, segments, rows = [], [], self._text_rows
        for place in sorted(places, key=lambda place: place.missing):
            context = place.context
            if place.ask.length > self._engine.shape.max_context:
                continue
            count = min(rows, place.missing - _LAST_ROWS)
            if count > 0 and self._contexts.reserve(context, context.computed + count):
                run = context.ids[context.computed : context.computed + count]
                segments.append(Segment(run, context.computed, tuple(context.blocks), wants_logits=False))
                context.computed += count
                rows -= count
            if place.missing <= _LAST_ROWS:
                ready.append(place)
        if segments:
            self._engine.forward(segments, self._contexts.take_tasks())
            for place in places:
                self._contexts.share(place.context)
        return ready

    def _step(self, places: Sequence[_Place], levels: Sequence[Level]) -> list[Candidates]:
        """The children of each level's nodes, of all sessions in one forward."""
        segments: list[Segment] = []
        wishes: dict[int, Wish] = {}
        for number, level in enumerate(levels):
            ask, context = places[level.tree].ask, places[level.tree].context
            keys = ask.length + len(context.tokens) + len(level.tokens)
            if context.full or not self._contexts.reserve(context, keys):
                context.full = True
                continue
            if level.tokens:
                segments.append(context.grown(level))
            else:
                run = context.ids[context.computed : ask.length]
                segments.append(Segment(run, context.computed, tuple(context.blocks)))
                context.computed = context.base = ask.length
            positions = [ask.length + depth for depth in level.depths]
            wishes[number] = Wish(ask.session.sampling, self._children, positions)
        if not segments:
            return [NOTHING] * len(levels)
        logits = self._engine.forward(segments, self._contexts.take_tasks())
        # Models of one tokenizer may have more ids, without a token, or fewer.
        chosen = choose(logits[:, : self._vocab_size], list(wishes.values()))
        found = dict(zip(wishes, chosen, strict=True))
        return [found.get(number, NOTHING) for number in range(len(levels))]


@dataclass(frozen=True, slots=True)
class _Place:
    """One session's part of a batch."""

    ask: Ask
    context: Context

    @property
    def missing(self) -> int:
        """Positions of the text that have no keys."""
        return self.ask.length - self.context.computed


class DraftModelFactory(MethodFactory):
    """The draft model that the settings name."""

    name = NAME
    computes = True

    def __init__(self, settings: DrafterSettings) -> None:
        """Raises `UnfitError` where there is no such model or device."""
        if not settings.draft_model:
            raise UnfitError(f"{NAME} needs a model: give --draft-model (PACELINE_DRAFTER_DRAFT_MODEL)")
        self._settings = settings
        self._device = device_of(settings)
        # The model with its keys, until a verifier is known.
        self._loaded: Engine | None = None
        self.weights = (settings.draft_model,)
        try:
            tokenizer = AutoTokenizer.from_pretrained(settings.draft_model)
        except Exception as error:
            raise UnfitError(
                f"{NAME}: cannot read the tokenizer of {settings.draft_model}: {one_line(error)}"
            ) from error
        self.needs = Needs(vocab_fingerprint=vocab_fingerprint(tokenizer.get_vocab()))

    def load(self) -> None:
        """See `MethodFactory.load`."""
        self._loaded = self._load()

    def create(self, target: Target) -> Method:
        """See `MethodFactory.create`. A model for each target: their sessions do not share its keys."""
        engine, self._loaded = self._loaded or self._load(), None
        return DraftModel(engine, target.vocab_size)

    def _load(self) -> Engine:
        settings = self._settings
        take_threads(settings)
        try:
            decoder = Decoder.load(settings.draft_model, device=self._device, dtype=dtype_of(settings))
        except ModelError as error:
            raise UnfitError(str(error)) from error
        blocks = settings.memory_bytes // decoder.block_bytes
        if not blocks:
            raise UnfitError(
                f"one block of {decoder.block_size} positions takes {decoder.block_bytes} bytes; "
                f"--memory-bytes is {settings.memory_bytes}"
            )
        return Engine(decoder, blocks)


def factory(settings: DrafterSettings) -> DraftModelFactory:
    """See `drafter_svc.methods.base`."""
    return DraftModelFactory(settings)
