"""Drafts with a trained head from the target's hidden states, for many sessions in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Ask, FeatureWant, Method, MethodFactory, Needs, Target, UnfitError
from drafter_svc.neural.choice import Wish, choose
from drafter_svc.neural.contexts import IDLE_BATCHES, Context, Contexts
from drafter_svc.neural.devices import device_of, dtype_of, take_threads
from drafter_svc.neural.growth import CHILDREN, NOTHING, WIDTH, Bounds, Candidates, Level, grow
from drafter_svc.neural.targets import TargetWeights
from paceline.engine.rows import Segment
from paceline.features import FeatureGrant
from paceline.heads import store
from paceline.heads.paged import PagedHead, block_bytes
from paceline.tree import TokenTree

NAME = "eagle"
# Levels of a first tree, as EAGLE-2's. A larger one goes as deep as it is asked for.
FIRST_DEPTH = 7
# States that wait at most for the session's next tree before their rows are computed.
_WAITING_ROWS = 256
# One of so many bytes of the method's memory is for states that wait, of all sessions together.
_WAITING_SHARE = 8
# Keys beyond its text that a session must find free to begin anew after it had no room.
_ROOM = 1024
_TOKEN_BITS = 32
_TOKEN_MASK = (1 << _TOKEN_BITS) - 1
_NONE = torch.empty(0)


@dataclass(slots=True)
class _Waiting:
    """Bytes of states that wait, of all sessions."""

    size: int = 0


@dataclass(eq=False, slots=True)
class _Text(Context):
    """A session at the head: `ids` stand for its rows, which are one fewer than its tokens.

    `waiting` are states [count, layers, width] of the positions from `computed` on, `rows` of them in all,
    counted in `all_waiting`. `outputs` [1 + nodes, d] are those of the last computed row and of the tree's
    nodes.
    """

    all_waiting: _Waiting = field(default_factory=_Waiting)
    waiting: list[Tensor] = field(default_factory=list)
    rows: int = 0
    outputs: Tensor = _NONE

    def came(self, states: Tensor) -> None:
        """States came; they wait."""
        self.waiting.append(states)
        self.rows += len(states)
        self.all_waiting.size += states.nbytes

    def left(self) -> None:
        """See `Context.left`. What waited for them goes, too."""
        self.drop_waiting()

    def drop_waiting(self) -> None:
        """No states wait any more: they are computed, or have no place."""
        self.all_waiting.size -= sum(states.nbytes for states in self.waiting)
        self.rows = 0
        self.waiting.clear()

    def learn(self, token_ids: Sequence[int]) -> None:
        """Bring `ids` up to the session's tokens."""
        if not self.ids and len(token_ids) > 1:
            # The first row depends on two tokens; every other one on its own and the rows before.
            self.ids.append(token_ids[0] << _TOKEN_BITS | token_ids[1])
        self.ids += token_ids[len(self.ids) + 1 :]

    def take(self) -> tuple[Segment, Tensor]:
        """The rows whose states wait, which count as computed from now on, and those states."""
        tokens = [row & _TOKEN_MASK for row in self.ids[self.computed : self.computed + self.rows]]
        segment = Segment(tokens, self.computed, tuple(self.blocks), wants_logits=False)
        states = torch.cat(self.waiting)
        self.cut()
        self.computed += self.rows
        self.drop_waiting()
        return segment, states


class Eagle(Method):
    """An EAGLE-3-type head: below what the target has computed, it goes on from its own outputs."""

    name = NAME

    def __init__(
        self,
        head: PagedHead,
        grant: FeatureGrant,
        *,
        children: int = CHILDREN,
        width: int = WIDTH,
        idle_batches: int = IDLE_BATCHES,
        waiting_bytes: int = 1 << 24,
    ) -> None:
        """`children`: most of one node; `width`: most nodes that are grown of a level.

        `waiting_bytes`: most of all sessions' states that wait, but for the last chunk.
        Raises `UnfitError` where what is granted is not what the head reads.
        """
        config = head.head.config
        if grant.width != config.width or not set(config.layers) <= set(grant.layers):
            raise UnfitError(
                f"the head reads layers {list(config.layers)} of width {config.width}; the verifier sends "
                f"{list(grant.layers)} of width {grant.width}"
            )
        self._head = head
        self._grant = grant
        self._children, self._width = children, width
        self._dtype: torch.dtype = getattr(torch, grant.dtype)
        self._layers = [grant.layers.index(layer) for layer in config.layers]
        self._token_ids = head.head.tokens.cpu().numpy()
        self._waiting, self._waiting_bytes = _Waiting(), waiting_bytes
        self._texts = Contexts(
            head.blocks,
            head.block_size,
            lambda ids: _Text(ids, all_waiting=self._waiting),
            idle_batches=idle_batches,
        )
        self._attached: set[str] = set()

    def attach(self, session: Hypothesis) -> None:
        """See `Method.attach`."""
        self._attached.add(session.key.session_id)
        self._begin(session)

    def lacks_from(self, session: Hypothesis) -> int | None:
        """See `Method.lacks_from`."""
        session_id = session.key.session_id
        text = self._texts.find(session_id)
        if text is None:
            return None if session_id in self._attached else 0
        return text.computed + text.rows

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        """See `Method.take_states`. They wait for the session's next tree, or until there are many."""
        text = self._texts.find(session.key.session_id)
        if text is None:
            return
        numbers = torch.frombuffer(bytearray(states), dtype=self._dtype)
        text.came(numbers.view(-1, len(self._grant.layers), self._grant.width)[:, self._layers])
        if text.rows > _WAITING_ROWS or self._waiting.size > self._waiting_bytes:
            text.learn(session.ids)
            self._compute({session.key.session_id: text})

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """See `Method.draft`."""
        self._texts.begin_batch()
        places: dict[str, _Place] = {}
        for ask in asks:
            session_id = ask.session.key.session_id
            text = self._texts.find(session_id)
            if text is not None and text.computed + text.rows == ask.length - 1:
                text.learn(ask.session.ids)
                places[session_id] = _Place(ask, self._texts.use(session_id, text.ids, len(text.ids)))
        self._compute({session_id: place.text for session_id, place in places.items()})
        ready = {
            session_id: place
            for session_id, place in places.items()
            if self._texts.find(session_id) is place.text and len(place.text.outputs)
        }
        growths = [
            place.text.growth_of(place.ask.length, self._bounds(place.ask)) for place in ready.values()
        ]
        try:
            trees = grow(growths, lambda levels: self._step(list(ready.values()), levels))
        except Exception:
            self._lose(ready)
            raise
        drafted = dict(zip(ready, trees, strict=True))
        return [drafted.get(ask.session.key.session_id, TokenTree()) for ask in asks]

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """See `Method.observe`. A session that has lost its keys begins anew once there is room."""
        lost = session.key.session_id in self._attached and self._texts.find(session.key.session_id) is None
        if lost and self._texts.free_keys >= len(session.ids) + _ROOM:
            self._begin(session)

    def forget(self, session_id: str) -> None:
        """See `Method.forget`. What was computed of the text is kept while there is room."""
        self._attached.discard(session_id)
        self._texts.drop(session_id)

    def _begin(self, session: Hypothesis) -> None:
        first = _Text([])
        first.learn(session.ids)
        self._texts.use(session.key.session_id, first.ids, len(first.ids))

    def _lose(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            self._texts.lose(session_id)

    def _compute(self, texts: Mapping[str, _Text]) -> None:
        """Compute the rows whose states wait, of all texts in one pass. A text without room is dropped."""
        going: list[_Text] = []
        for session_id, text in texts.items():
            if not text.rows:
                continue
            if self._texts.reserve(text, text.computed + text.rows):
                going.append(text)
            else:
                self._texts.drop(session_id)
        if not going:
            return
        taken = [text.take() for text in going]
        try:
            states = self._head.fuse(torch.cat([states for _, states in taken]))
            segments = [segment for segment, _ in taken]
            outputs = self._head.forward(segments, states, self._texts.take_tasks())
        except Exception:
            self._lose(texts)
            raise
        last = -1
        for text, segment in zip(going, segments, strict=True):
            last += segment.num_rows
            text.outputs = outputs[last : last + 1].clone()
            if segment.num_rows >= self._head.block_size // 2:
                self._texts.share(text)

    def _bounds(self, ask: Ask) -> Bounds:
        return Bounds(ask.nodes, ask.depth if ask.sent.tokens else min(ask.depth, FIRST_DEPTH), self._width)

    def _step(self, places: Sequence[_Place], levels: Sequence[Level]) -> list[Candidates]:
        """The children of each level's nodes, of all sessions in one pass."""
        self._grow([(places[level.tree].text, level) for level in levels if level.tokens])
        rows: list[Tensor] = []
        wishes: dict[int, Wish] = {}
        for number, level in enumerate(levels):
            ask, text = places[level.tree].ask, places[level.tree].text
            if not level.tokens:
                text.base = text.computed
            if not text.full:
                rows.append(text.outputs[-len(level.depths) :])
                positions = [ask.length + depth for depth in level.depths]
                wishes[number] = Wish(ask.session.sampling, self._children, positions)
        if not rows:
            return [NOTHING] * len(levels)
        chosen = choose(self._head.logits(torch.cat(rows)), list(wishes.values()), self._token_ids)
        found = dict(zip(wishes, chosen, strict=True))
        return [found.get(number, NOTHING) for number in range(len(levels))]

    def _grow(self, levels: Sequence[tuple[_Text, Level]]) -> None:
        """Compute outputs of nodes from those of their parents, where there is room for the nodes' keys."""
        segments: list[Segment] = []
        states: list[Tensor] = []
        growing: list[_Text] = []
        for text, level in levels:
            keys = text.base + len(text.tokens) + len(level.tokens)
            text.full = text.full or not self._texts.reserve(text, keys)
            if not text.full:
                states.append(text.outputs[[parent + 1 for parent in level.parents]])
                segments.append(text.grown(level))
                growing.append(text)
        if segments:
            outputs = self._head.forward(segments, torch.cat(states), self._texts.take_tasks())
            for text, own in zip(growing, outputs.split([len(part) for part in states]), strict=True):
                text.outputs = torch.cat((text.outputs, own))


@dataclass(frozen=True, slots=True)
class _Place:
    """One session's part of a batch."""

    ask: Ask
    text: _Text


class EagleFactory(MethodFactory):
    """The heads that are there, each for its own target."""

    name = NAME
    computes = True

    def __init__(self, settings: DrafterSettings) -> None:
        """Raises `UnfitError` where no head is there, or no such device."""
        folders = [store.SHIPPED] + ([settings.heads] if settings.heads is not None else [])
        self._files = {
            labels.weights_fingerprint: path for folder in folders for path, labels in _heads(folder)
        }
        if not self._files:
            raise UnfitError(
                f"{NAME}: no head is in {' or '.join(map(str, folders))}; `paceline train eagle` makes one"
            )
        if not settings.model:
            raise UnfitError(
                f"{NAME} takes the target's embedding from its weights: give --model (PACELINE_DRAFTER_MODEL)"
            )
        self._settings = settings
        self._device = device_of(settings)
        # The head for `settings.model`, until a verifier of it is known.
        self._loaded: dict[str, PagedHead] = {}
        self.weights = tuple(map(str, self._files.values()))
        self.needs = Needs(
            features=tuple(
                FeatureWant(store.labels(path).config.layers, fingerprint)
                for fingerprint, path in self._files.items()
            )
        )

    def load(self) -> None:
        """See `MethodFactory.load`."""
        weights = TargetWeights.of(self._settings.model)
        self._loaded = {weights.fingerprint: self._load(weights)}

    def create(self, target: Target) -> Method:
        """See `MethodFactory.create`."""
        fingerprint = target.weights_fingerprint
        if target.features is None:
            raise UnfitError("the verifier sends no hidden states")
        head = self._loaded.pop(fingerprint, None)
        if head is None:
            self._path(fingerprint)
            weights = TargetWeights.of(self._settings.model)
            if weights.fingerprint != fingerprint:
                raise UnfitError(
                    f"--model {weights.model} has the weights {weights.fingerprint}; the target's are "
                    f"{fingerprint}"
                )
            head = self._load(weights)
        return Eagle(head, target.features, waiting_bytes=_waiting_bytes(self._settings))

    def _load(self, weights: TargetWeights) -> PagedHead:
        settings, path = self._settings, self._path(weights.fingerprint)
        take_threads(settings)
        try:
            head = store.load(
                path,
                weights_fingerprint=weights.fingerprint,
                device=self._device,
                dtype=dtype_of(settings) or torch.bfloat16,
            )
            blocks = (settings.memory_bytes - _waiting_bytes(settings)) // block_bytes(head)
            return PagedHead(head, weights.embedding(), blocks=blocks)
        except (store.HeadError, ValueError) as error:
            raise UnfitError(str(error)) from error

    def _path(self, fingerprint: str) -> Path:
        path = self._files.get(fingerprint)
        if path is None:
            raise UnfitError(f"no head of the weights {fingerprint or '(unknown)'} is here")
        return path


def _waiting_bytes(settings: DrafterSettings) -> int:
    """Bytes of the method's memory that are for states which wait; keys and values have the rest."""
    return settings.memory_bytes // _WAITING_SHARE


def _heads(folder: Path) -> Iterator[tuple[Path, store.Labels]]:
    """The files of a folder that hold heads."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            yield path, store.labels(path)
        except store.HeadError:
            continue


def factory(settings: DrafterSettings) -> EagleFactory:
    """See `drafter_svc.methods.base`."""
    return EagleFactory(settings)
