"""A method that computes, without a model: it drafts the ids that the scripted verifier's states hold."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask, FeatureWant, Method, MethodFactory, Needs, Target
from paceline.service import telemetry
from paceline.tree import TokenTree

log = telemetry.logger(__name__)

WEIGHTS = "e" * 32
LAYER = 3


class Echo(Method):
    """Keeps the states of all its sessions, while there is room."""

    name = "echo"

    def __init__(self, target: Target) -> None:
        assert target.features is not None
        self._grant = target.features
        self._vocab_size = target.vocab_size
        self._states: dict[str, NDArray[np.float32]] = {}
        self.room = True
        # Sessions of each batch, and whether drafting may go on.
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()

    def attach(self, session: Hypothesis) -> None:
        self._states[session.key.session_id] = self._none()

    def lacks_from(self, session: Hypothesis) -> int | None:
        return len(self._states.get(session.key.session_id, ())) if self.room else None

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        known = self._states[session.key.session_id]
        assert position == len(known)
        came = np.frombuffer(states, "<f4").reshape(-1, len(self._grant.layers), self._grant.width)
        assert position + len(came) < session.base_length
        own = came[:, self._grant.layers.index(LAYER)] - LAYER * self._vocab_size
        self._states[session.key.session_id] = np.concatenate([known, own])

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        assert self.go.wait(30)
        self.batches.append([ask.session.key.session_id for ask in asks])
        return [self._tree(ask) for ask in asks]

    def forget(self, session_id: str) -> None:
        self._states.pop(session_id, None)

    def lose(self, session_id: str) -> None:
        """Lose a session's states, as a method does that needs the room for others."""
        self._states[session_id] = self._none()

    def _tree(self, ask: Ask) -> TokenTree:
        last = self._states[ask.session.key.session_id][ask.length - 2]
        # The first of the ids that follow is committed already.
        assert last[0] == ask.session.ids[ask.length - 1]
        chain = [int(token) for token in last[1:]][: min(ask.nodes, ask.depth)]
        return TokenTree(tuple(chain), tuple(range(-1, len(chain) - 1)), (-0.05,) * len(chain))

    def _none(self) -> NDArray[np.float32]:
        return np.zeros((0, self._grant.width), np.float32)


class EchoFactory(MethodFactory):
    """Of the scripted target with the weights that it was made for."""

    name = "echo"
    computes = True
    weights = ("echo.safetensors",)

    def __init__(self, weights: str = WEIGHTS) -> None:
        self.needs = Needs(features=(FeatureWant((LAYER,), weights),))
        self.methods: list[Echo] = []

    def load(self) -> None:
        log.info("echo loads", thread=threading.current_thread().name)

    def create(self, target: Target) -> Echo:
        self.methods.append(Echo(target))
        return self.methods[-1]


def factory(settings: DrafterSettings) -> MethodFactory:
    """What the entry point names."""
    return EchoFactory()
