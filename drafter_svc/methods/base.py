"""What a drafting method is: what it needs, what it is told and asked, what it can be taught; its sources.

`drafter_svc.methods` holds the methods that draft from the text itself. Any other is found by an entry point
of the group `paceline.drafting`: a function that takes `DrafterSettings` and returns a `MethodFactory`, or
raises `UnfitError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from paceline.features import FeatureGrant
from paceline.tree import TokenTree

NO_TREE = TokenTree()


@dataclass(frozen=True, slots=True)
class FeatureWant:
    """Hidden states that a method drafts from, of the model with these weights.

    `layers`: 0 is the embedding's output, i the output of decoder layer i, up to the last layer's before the
    final norm; ascending. `weights_fingerprint` is as in `Target`; empty wants them of any model.
    """

    layers: tuple[int, ...]
    weights_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs from verifiers besides committed ids. The Hello asks for it.

    `feedback_top_k` is the number of the target's top ids per verified row; 0 asks for no feedback.
    `vocab_fingerprint` is of the vocabulary that its ids belong to; empty where it fits any. `features`: one
    want for each model that it knows, because the Hello is said before the model is known.
    """

    feedback_top_k: int = 0
    vocab_fingerprint: str = ""
    features: tuple[FeatureWant, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a verifier serves, from its Welcome.

    `weights_fingerprint` is the hash of its configuration and weights; empty where the verifier does not know
    it. `features` is None where no hidden states were granted; its layers may be more than one method wants.
    """

    model_id: str
    vocab_fingerprint: str
    vocab_size: int
    weights_fingerprint: str = ""
    features: FeatureGrant | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for a tree of at most `nodes` nodes and `depth` levels after the first `length` ids of a session.

    `session.ids` may grow while a method computes on its own thread; ids past `length` belong to a later ask.
    `session.sampling` holds temperature and seed for a method that knows the target's noise.
    `sent` is the tree that the method drafted before for the same `length`, empty for the first: the answer
    is a larger tree, which a method that keeps its work grows below that one.
    """

    session: Hypothesis
    length: int
    nodes: int
    depth: int
    sent: TokenTree = NO_TREE


class Method(Protocol):
    """Drafts trees for many sessions of one target.

    All calls but `lacks_from` come from one thread, in order: the event loop's, or, if the factory says that
    the method computes, one that all computing methods share. No ids should make a call raise. If one does,
    the method drafts no more for the sessions that it was made for (see `Runner`). What has a default here
    may be left out by a class that derives from this one.
    """

    name: str

    def attach(self, session: Hypothesis) -> None:
        """Draft for a session from now on, until `forget`. Called once, before any other call about it."""
        return

    def lacks_from(self, session: Hypothesis) -> int | None:
        """First position whose hidden states it lacks; 0 for a session that it does not know (yet).

        None: it wants none for this session now, because it has no room. A number smaller than before says
        that it has lost states: they are sent again. Called on any thread, so it only looks up.
        """
        return None

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        """Take in the target's hidden states of consecutive committed positions, from `position` on.

        `states` are the bytes of [count, layers, width] numbers, little-endian, as `Target.features` says;
        valid for this call only. `position` is what `lacks_from` returns; afterwards that is `position` +
        count, unless there was no room. The ids of these positions are known by then, and at least one more.
        """
        return

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """One tree for each ask, in the same order, likeliest path first. A tree may be empty.

        The asks are of all sessions, at all verifiers, that wait. A method with `Needs.features` is asked for
        a session once it has the states of all positions before `length` - 1; the last id has none yet.
        """
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Take in a verdict. `session.ids` already hold `lesson.committed`, from `lesson.start` on."""
        return

    def settle(self) -> bool:
        """Do a part of what `observe` put off; whether more of it is left. Called after trees have been sent.

        Where the method does not compute, a part takes no longer than half a millisecond.
        """
        return False

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session. Unknown sessions are fine."""
        ...


class Teachable(Protocol):
    """Can be taught by texts, and what it learned can be stored."""

    name: str

    def learn(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a text that was not drafted. Unlike `Method.observe`, nothing is measured."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one text. Tables keep what it taught."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables; call it first. Raises `ValueError` or `KeyError` for malformed ones."""
        ...


class TeachableMethod(Method, Teachable, Protocol):
    """A method whose tables belong to the sessions that taught them: each tenant has its own."""

    def fresh(self) -> TeachableMethod:
        """A new one that begins as this one began, without what this one learned since.

        The initial tables are shared, not copied. One bound holds for what all of them learn together.
        """
        ...


class UnfitError(ValueError):
    """A method cannot draft as it is configured, or for a target; the message says why, for people."""


def check_fit(needs: Needs, target: Target) -> None:
    """Raise `UnfitError` where a verifier of `target` does not give what a method needs."""
    wanted = needs.vocab_fingerprint
    if wanted and wanted != target.vocab_fingerprint:
        raise UnfitError(
            f"its vocabulary {wanted} is not the target's {target.vocab_fingerprint or '(unknown)'}"
        )
    if not needs.features:
        return
    weights = target.weights_fingerprint
    wants = [want for want in needs.features if want.weights_fingerprint in ("", weights)]
    if not wants:
        raise UnfitError(f"it knows no model with the target's weights {weights or '(unknown)'}")
    granted = set(target.features.layers) if target.features is not None else set()
    if not any(set(want.layers) <= granted for want in wants):
        layers = ",".join(map(str, wants[0].layers))
        raise UnfitError(
            f"the verifier does not send hidden states of layers {layers}: see its --keep-states"
        )


class MethodFactory(Protocol):
    """A drafting method as configured. The process makes it once, before its first Hello.

    `name` is also what its nodes' source is called on the wire: 1 to 32 of a-z 0-9 _ -.
    """

    name: str
    needs: Needs
    # Whether calls take longer than the event loop may be held up.
    computes: bool
    # What it would draft with, such as the files of weights that were found; for people.
    weights: Sequence[str]

    def load(self) -> None:
        """Read the weights that are known before any target, so that no session waits for it.

        Called at most once, of a method that computes, on the thread where it is made, before the process
        says that it is ready. May be left out by a class that derives from this one. Raises `UnfitError`
        where they cannot be read; `create` is called all the same.
        """
        return

    def create(self, target: Target) -> Method:
        """The method for one target, for the sessions of all verifiers that serve it.

        Called where the method is, so it may load weights. Raises `UnfitError`; the others draft without it.
        """
        ...


class Proposer(Protocol):
    """One source's candidates for one session."""

    def __call__(self, context: tuple[int, ...], depth: int) -> Mapping[int, int]:
        """Candidate ids after `context` (last ids, at least one), each with its grade from 1.

        `depth` is how many of the context's ids are guesses; 0 at the root.
        """
        ...


class Source(Protocol):
    """Where candidates come from. A grade sorts candidates; how often each grade is right is measured.

    `log_odds[grade]` is what a grade adds to a candidate's log-odds before anything was measured;
    `log_odds[0]` is for tokens that the source does not propose. `feedback_top_k` is as in `Needs`.
    """

    name: str
    feedback_top_k: int
    log_odds: tuple[float, ...]

    def proposer(self, session: Hypothesis) -> Proposer:
        """Candidates for the session with its present ids."""
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a verdict. `session.ids` already hold its committed ids."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions; may be empty."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables. Raises `ValueError` or `KeyError` for malformed ones."""
        ...

    def fresh(self) -> Source:
        """See `TeachableMethod.fresh`."""
        ...
