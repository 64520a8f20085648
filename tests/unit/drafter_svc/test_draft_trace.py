"""A session's trace at its drafter: its join, some of its trees, and all of them summed."""

from __future__ import annotations

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from drafter_svc import methods
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.rounds import TreeLimits
from drafter_svc.tenants import Tenants
from paceline.sampling import SamplingParams
from paceline.service import spans
from paceline.session import SessionKey
from paceline.verdict import Verdict
from tests.drafting import DrivenRounds

VOCAB = 100
LIMITS = TreeLimits(vocab_size=VOCAB, nodes=8, depth=4)
KEY = SessionKey("s", 1)
IDS = (1, 2, 3, 1, 2)
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


def _rounds() -> DrivenRounds:
    made = DrivenRounds(Tenants(methods.create("lookup", VOCAB), most=4), LIMITS)
    made.welcome()
    return made


def _traced() -> DraftTrace:
    made = DraftTrace.of(spans.tracer().start_span("drafter.session"), len(IDS))
    assert made is not None
    return made


def _hypothesis(epoch: int = 1) -> Hypothesis:
    return Hypothesis(SessionKey("s", epoch), SamplingParams(max_tokens=500), IDS)


def test_a_session_has_its_join_and_its_trees(recorded_spans: InMemorySpanExporter) -> None:
    rounds = _rounds()
    nodes = len(rounds.attach(_hypothesis(), _traced()).trees[0][2])
    rounds.verdicts([Verdict(KEY, 5, committed=(), draft_budget=3)])
    rounds.verdicts([Verdict(KEY, 5, committed=(3, 1), accepted=1, drafted=3, draft_budget=3)])
    rounds.verdicts([Verdict(KEY, 7, committed=(2,), accepted=1, drafted=3, finished=True)])
    found = recorded_spans.get_finished_spans()
    session = found[-1]
    assert [span.name for span in found] == [
        "drafter.draft",
        "drafter.join",
        # The tree behind the join's answer is on the same text, and one of them is enough.
        "drafter.draft",
        "drafter.session",
    ]
    for span in found[:-1]:
        assert span.parent is not None
        assert span.parent.span_id == session.context.span_id
        assert span.start_time is not None
        assert session.start_time is not None
        assert span.start_time >= session.start_time
    assert dict(found[0].attributes or {}) == {
        "paceline.base_length": 5,
        "paceline.asked_nodes": 8,
        "paceline.drafted_tokens": nodes,
        "paceline.batch.sessions": 1,
    }
    told = dict(session.attributes or {})
    assert (told["paceline.trees"], told["paceline.accepted_tokens"]) == (3, 2)


def test_a_session_that_was_there_already_ends_the_trace_at_once(
    recorded_spans: InMemorySpanExporter,
) -> None:
    rounds = _rounds()
    rounds.attach(_hypothesis(epoch=2))
    rounds.attach(_hypothesis(epoch=1), _traced())
    (ended,) = recorded_spans.get_finished_spans()
    assert ended.name == "drafter.session"


def test_what_is_not_sampled_has_no_trace(recorded_spans: InMemorySpanExporter) -> None:
    span = spans.tracer().start_span("drafter.session", context=spans.extract(UNSAMPLED))
    assert DraftTrace.of(span, 5) is None
