"""Admission control: admits, queues or refuses requests by their key's limits and the global ones."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from gateway import metrics
from gateway.caller import Caller
from gateway.errors import OVERLOADED, RATE_LIMITED, UNAVAILABLE, RequestError
from gateway.events import Allowance
from gateway.limits import (
    Account,
    Admission,
    Ask,
    Ledger,
    LedgerUnavailableError,
    Outcome,
    Settlement,
    UsageLimits,
)
from gateway.limits.base import LEASE_SECONDS
from gateway.turns import Turns
from paceline.service import telemetry
from paceline.service.tasks import cancel_and_wait

log = telemetry.logger(__name__)

# Answer tokens that a request is charged for when it is admitted. Unused ones are given back when it ends;
# further ones are charged as they are generated.
RESERVED_TOKENS = 1024
# How often places are renewed and tokens charged.
_SETTLE_SECONDS = 3.0
# How often the head of a queue asks the ledger again. It is not told of places that other gateways free.
_POLL_SECONDS = 0.1
# How long the end of an answer waits until its place is freed.
_FREE_SECONDS = 0.25
# Shortest and longest wait that a refused client is told.
_RETRY_SECONDS = (1.0, 60.0)


@dataclass(slots=True, eq=False)
class Place:
    """An admitted request. Whoever runs it keeps `generated` up to date."""

    ask: Ask
    prompt_tokens: int
    allowance: Allowance | None = None
    generated: int = 0
    # When its session began, on the monotonic clock; 0 if it has not begun.
    began: float = 0.0
    ended: bool = False
    ended_at: float = 0.0
    # What the ledger knows: the tokens charged, and whether the place was freed.
    charged: int = 0
    freed: bool = False

    @property
    def due(self) -> int:
        """Tokens that should be charged by now."""
        used = self.prompt_tokens + self.generated
        return used if self.ended else max(used, self.charged)


@dataclass(slots=True)
class _Line:
    """Requests of one key that wait at this gateway, by priority, then first come, first served."""

    head: Turns = field(default_factory=Turns)
    length: int = 0


class AdmissionControl:
    """Admits requests to this gateway. Each key has its own queue, so no key waits behind another one's."""

    def __init__(self, ledger: Ledger, everybody: UsageLimits, *, queue_seconds: float) -> None:
        """`everybody`: limits on all requests together. `queue_seconds`: longest wait in the queue."""
        self._ledger = ledger
        self._everybody = Account("all", everybody)
        self.queue_seconds = queue_seconds
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._running: dict[Place, None] = {}
        self._waiting: list[Ask] = []
        self._ended: list[Place] = []
        self._wake = asyncio.Event()
        self._freed = asyncio.Event()
        self._mean_seconds = 1.0
        metrics.QUEUED_REQUESTS.labels(queue="limits").set_function(lambda: len(self._waiting))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the ledger up to date while the block runs."""
        settling = asyncio.create_task(self._settle_on())
        try:
            yield
        finally:
            await cancel_and_wait(settling)
            with suppress(LedgerUnavailableError):
                await self._settle(renew=False)

    @asynccontextmanager
    async def admitted(
        self, caller: Caller, session_id: str, *, prompt_tokens: int, max_tokens: int, priority: int = 0
    ) -> AsyncIterator[Place]:
        """Hold a place for one session while the block runs. A resumed session may still have its old place.

        `priority`: of a key's requests that wait here the lowest is served first. Raises `RequestError` with
        a retry time, at once or after a wait in the queue.
        """
        accounts = (self._everybody, Account(f"key:{caller.id}", caller.limits))
        reserved = prompt_tokens + min(max_tokens, RESERVED_TOKENS)
        counted = tuple(account for account in accounts if account.limits.any)
        place = Place(Ask(session_id, counted, reserved), prompt_tokens, charged=reserved)
        if counted:
            place.allowance = await self._enter(place.ask, self._lines[caller.id], priority)
        self._running[place] = None
        try:
            yield place
        finally:
            if place.began:
                self._mean_seconds += 0.2 * (time.monotonic() - place.began - self._mean_seconds)
            del self._running[place]
            self._leave(place)
        # So that a client that asks again right after its answer finds its place free.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FREE_SECONDS):
                while counted and not place.freed:
                    await self._freed.wait()

    async def tokenised(self, place: Place, prompt_tokens: int, max_tokens: int) -> None:
        """Replace the estimated length of a prompt by the real one, and charge the difference."""
        place.prompt_tokens = prompt_tokens
        more = prompt_tokens + min(max_tokens, RESERVED_TOKENS) - place.charged
        limited = [each for each in place.ask.accounts if each.limits.tokens_per_minute is not None]
        if not limited or not more:
            return
        place.charged += more
        if place.allowance is not None:
            place.allowance = place.allowance.less(more)
        try:
            running = (place.ask.id,)
            await self._ledger.settle([Settlement(each, tokens=more, running=running) for each in limited])
        except LedgerUnavailableError:
            # Charged with the next settlement.
            place.charged -= more

    async def _enter(self, ask: Ask, line: _Line, priority: int) -> Allowance | None:
        try:
            admission = await self._first_answer(ask, line)
            if admission.outcome is Outcome.QUEUED:
                admission = await self._wait(ask, line, admission, priority)
        except BaseException as error:
            # The ledger may hold it as queued or as admitted.
            self._leave(Place(ask, 0, ended=True))
            if isinstance(error, LedgerUnavailableError):
                metrics.REFUSED_REQUESTS.labels(reason="limits_unavailable").inc()
                raise RequestError(UNAVAILABLE, "limits cannot be checked now; try again later") from error
            raise
        if admission.outcome is not Outcome.ADMITTED:
            raise self._refusal(admission)
        own = ask.accounts[-1]
        rate, left = own.limits.tokens_per_minute, admission.left[-1]
        if own is self._everybody or rate is None or left is None:
            return None
        return Allowance(rate, left, (rate - left) * 60 / rate)

    async def _first_answer(self, ask: Ask, line: _Line) -> Admission:
        return await self._ledger.admit(replace(ask, behind=line.length > 0))

    async def _wait(self, ask: Ask, line: _Line, admission: Admission, priority: int) -> Admission:
        """Wait in the queue; the admission at its end."""
        line.length += 1
        self._waiting.append(ask)
        try:
            async with asyncio.timeout(self.queue_seconds), line.head.held(priority):
                while True:
                    freed = self._freed
                    admission = await self._ledger.admit(ask)
                    if admission.outcome is Outcome.ADMITTED:
                        return admission
                    if admission.outcome is not Outcome.QUEUED:
                        raise self._refusal(admission)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_SECONDS):
                            await freed.wait()
        except TimeoutError:
            raise self._refusal(admission) from None
        finally:
            line.length -= 1
            self._waiting.remove(ask)

    def retry_seconds(self, ahead: int, places: int) -> float:
        """Estimated seconds until one with `ahead` before it gets a place, by recent sessions' lengths."""
        least, most = _RETRY_SECONDS
        return min(max(self._mean_seconds * (ahead + 1) / max(places, 1), least), most)

    def _refusal(self, admission: Admission) -> RequestError:
        account, limits = admission.account, admission.account.limits
        if account is self._everybody:
            kind, whose = OVERLOADED, "here"
        else:
            kind, whose = RATE_LIMITED, "for this API key"
        if admission.outcome is Outcome.TOKENS:
            reason, seconds = "tokens_per_minute", max(admission.seconds, _RETRY_SECONDS[0])
            message = (
                f"{limits.tokens_per_minute} tokens per minute are allowed {whose}, and they are used up"
            )
        else:
            ahead = admission.waiting if admission.outcome is Outcome.FULL else 0
            seconds = self.retry_seconds(ahead, limits.concurrent_sessions or 1)
            message = f"{limits.concurrent_sessions} sessions are allowed at once {whose}, and all are taken"
            if admission.outcome is Outcome.FULL:
                reason = "queued_requests"
                message += f"; {ahead} requests wait already"
            else:
                reason = "queue_seconds"
                message += f"; none has ended within {self.queue_seconds:g} seconds"
        metrics.REFUSED_REQUESTS.labels(reason=reason).inc()
        room = admission.outcome is not Outcome.TOKENS
        return RequestError(kind, message, retry_after=seconds, for_room=room)

    def _leave(self, place: Place) -> None:
        place.ended, place.ended_at = True, time.monotonic()
        if place.ask.accounts:
            self._ended.append(place)
            self._wake.set()

    async def _settle_on(self) -> None:
        away = False
        renew_at = time.monotonic() + _SETTLE_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            renew = time.monotonic() >= renew_at
            if renew:
                renew_at = time.monotonic() + _SETTLE_SECONDS
            try:
                await self._settle(renew=renew)
                away = False
            except LedgerUnavailableError as error:
                if not away:
                    log.warning("limits cannot be counted, nobody new is let in", error=str(error))
                away = True
            except Exception as error:
                # Go on: leases that are not renewed expire.
                log.error("limits were not settled", exc_info=error)

    async def _settle(self, *, renew: bool) -> None:
        """Tell the ledger what has ended and, with `renew`, what goes on. Raises `LedgerUnavailableError`."""
        ended, self._ended = self._ended, []
        going = [place for place in self._running if place.ask.accounts] if renew else []
        waiting = list(self._waiting) if renew else []
        # A session that was resumed here while its first stream ended keeps its place.
        kept = {place.ask.id for place in self._running}
        charges = [(place, place.due - place.charged) for place in (*going, *ended)]
        settlements = _by_account(charges, waiting, kept)
        if not settlements:
            return
        try:
            await self._ledger.settle(settlements)
        except BaseException:
            self._ended = [*(place for place in ended if _matters(place)), *self._ended]
            raise
        for place, tokens in charges:
            place.charged += tokens
        for place in ended:
            place.freed = True
        self._freed.set()
        self._freed = asyncio.Event()


def _by_account(
    charges: Sequence[tuple[Place, int]], waiting: Sequence[Ask], kept: Collection[str]
) -> list[Settlement]:
    accounts = {
        account.name: account
        for ask in (*(place.ask for place, _ in charges), *waiting)
        for account in ask.accounts
    }
    settlements = []
    for name, account in accounts.items():
        concerned = [(place, tokens) for place, tokens in charges if _counts(place.ask, name)]
        settlements.append(
            Settlement(
                account,
                tokens=sum(tokens for _, tokens in concerned),
                running=tuple(place.ask.id for place, _ in concerned if not place.ended),
                waiting=tuple(ask.id for ask in waiting if _counts(ask, name)),
                ended=tuple(
                    place.ask.id for place, _ in concerned if place.ended and place.ask.id not in kept
                ),
            )
        )
    return settlements


def _matters(place: Place) -> bool:
    """Whether the ledger must still be told that it ended: a charge is due, or its lease may still run."""
    return place.due != place.charged or time.monotonic() - place.ended_at < LEASE_SECONDS


def _counts(ask: Ask, name: str) -> bool:
    return any(account.name == name for account in ask.accounts)
