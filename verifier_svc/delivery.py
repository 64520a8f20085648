"""What goes out: tokens to gateways by way of the committer, verdicts to drafters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from paceline.session import FinishReason
from paceline.verdict import Verdict
from verifier_svc.commit import Committer
from verifier_svc.drafters import DrafterStreams
from verifier_svc.events import Faulty, StepOutcome
from verifier_svc.progress import SessionStep
from verifier_svc.session_drafts import SessionDrafts
from verifier_svc.session_trace import StepTimes
from verifier_svc.sessions import Session
from verifier_svc.standing import Standings
from verifier_svc.step import StepLoop

# How often sessions without news hear that the engine is getting on.
_ALIVE_SECONDS = 1.0


class Delivery:
    """Hands on what the step loop says. The methods of `StepListener` may be called from any thread."""

    def __init__(
        self,
        committer: Committer,
        drafts: SessionDrafts,
        streams: DrafterStreams,
        standings: Standings,
        *,
        on_failure: Callable[[], None],
    ) -> None:
        """Make it on the event loop. `on_failure` is called there when the engine has stopped for good."""
        self._event_loop = asyncio.get_running_loop()
        self._committer = committer
        self._drafts = drafts
        self._streams = streams
        self._standings = standings
        self._on_failure = on_failure

    def stepped(self, steps: list[SessionStep], times: StepTimes) -> None:
        """See `StepListener`."""
        self._event_loop.call_soon_threadsafe(self._deliver, steps, times)

    def session_failed(self, session: Session, fault: Faulty) -> None:
        """See `StepListener`."""
        self._event_loop.call_soon_threadsafe(self._end, session, fault)

    def tree_failed(self, stream_id: int) -> None:
        """See `StepListener`."""
        self._event_loop.call_soon_threadsafe(self._blame, stream_id)

    def engine_failed(self) -> None:
        """See `StepListener`."""
        self._event_loop.call_soon_threadsafe(self._fail)

    def dismiss_drafter(self, session: Session) -> None:
        """Tell the session's drafter, if there is one, that it needs no more trees."""
        stream = self._streams.get(session.drafting.stream_id)
        if stream is not None:
            stream.dismiss(session.key, session.length)

    async def say_alive(self, loop: StepLoop) -> None:
        """Tell sessions, for ever, when the engine is getting on."""
        beats = -1
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            if loop.beats != beats:
                beats = loop.beats
                self._committer.say_alive()

    def _deliver(self, steps: list[SessionStep], times: StepTimes) -> None:
        # Tokens go first: whatever may be wrong with what drafters are told, none is lost by it.
        self._committer.push((step.key, step.outcome) for step in steps)
        verdicts: dict[int, list[Verdict]] = {}
        for step in steps:
            if step.stream_id:
                verdicts.setdefault(step.stream_id, []).append(step.verdict)
        for stream_id, batch in verdicts.items():
            stream = self._streams.get(stream_id)
            if stream is None:
                continue
            stream.send(batch)
            for verdict in batch:
                if verdict.drafted:
                    self._standings.verified(stream.peer, verdict.accepted)
            if stream.overrun:
                self._drafts.end(stream)
        # A step without verdicts may have computed a part of a prompt.
        self._streams.stepped()
        if times.traced:
            outcomes = {step.key: step.outcome for step in steps}
            for rows in times.traced:
                rows.trace.stepped(times, rows, outcomes.get(rows.key))

    def _end(self, session: Session, fault: Faulty) -> None:
        """The session's client first gets the tokens that it has come to."""
        ended = StepOutcome((), 0, FinishReason.CANCELLED, fault=fault)
        self._committer.push([(session.key, ended)])
        self.dismiss_drafter(session)

    def _blame(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._standings.harmed(stream.peer)

    def _fail(self) -> None:
        self._committer.fail()
        self._on_failure()
