"""However a session's tokens come, its client is told each one once, in order, and nothing behind the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.caller import Caller
from gateway.detokenize import Detokenizer, TokenTexts
from gateway.errors import RequestError
from gateway.events import Chunk, Finished
from gateway.generation import Form, Generation
from gateway.transcript import Told, Transcript
from paceline.logprobs import LogprobsWanted, TokenLogprobs, pack
from paceline.sampling import SamplingParams
from paceline.session import NO_COSTS, DraftCosts, FinishReason, SessionKey, SourceTokens
from paceline.store import SessionRecord

PROMPT = (1, 2, 3)
# Id 0 ends a text and has none; 1 is "a", 2 is "b", and so on.
STOP_ID = 0
TEXTS = TokenTexts(
    decode=lambda ids: "".join(chr(96 + token) for token in ids if token),
    silent=frozenset({STOP_ID}),
    size=27,
    byte_ids=frozenset(),
    anchor=(1,),
    anchor_text="a",
)
IDS = st.lists(st.integers(1, 26), min_size=1, max_size=30)


def wanted(max_tokens: int = 100, stops: Sequence[str] = (), stop_from: int = 0) -> Generation:
    sampling = SamplingParams(max_tokens, stop_token_ids=frozenset({STOP_ID}), stop_from=stop_from)
    return Generation("m", PROMPT, sampling, tuple(stops), form=Form("text"))


def transcript(asked: Generation) -> Transcript:
    return Transcript(asked, Detokenizer(TEXTS))


def record(asked: Generation, ids: Sequence[int], reason: FinishReason | None = None) -> SessionRecord:
    made = asked.record(SessionKey("s", 1), Caller("me"), ids)
    return SessionRecord(
        made.key,
        made.model_id,
        made.prompt_ids,
        made.sampling,
        made.committed_ids,
        made.reply,
        reason,
    )


def step(
    to: Transcript,
    position: int,
    ids: Sequence[int],
    accepted: int = 0,
    sources: Sequence[SourceTokens] = (),
) -> list[Told]:
    return to.take(position, ids, accepted=accepted, drafted=accepted, durable=True, sources=sources)


SCORED = LogprobsWanted(top=1, prompt_top=0)


def logprob_of(position: int) -> TokenLogprobs:
    """A different one for each position."""
    return TokenLogprobs(-float(position), position + 1, (position,), (-0.5,))


def scores(position: int, count: int) -> bytes:
    return pack(map(logprob_of, range(position, position + count)))


def text_of(told: Sequence[Told]) -> str:
    return "".join(each.text for each in told if isinstance(each, Chunk))


def ids_of(told: Sequence[Told]) -> list[int]:
    """All ids, each where its chunk says that it stands."""
    ids: list[int] = []
    for each in told:
        if isinstance(each, Chunk):
            assert each.position == len(PROMPT) + len(ids)
            ids += each.token_ids
    return ids


def spelt(ids: Sequence[int]) -> str:
    return TEXTS.decode(list(ids))


@given(ids=IDS, steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9))))
def test_steps_that_overlap_as_after_a_move_are_told_once(
    ids: list[int], steps: list[tuple[int, int, int]]
) -> None:
    made, told = transcript(wanted()), list[Told]()
    for back, ahead, accepted in [*steps, (0, len(ids), 0)]:
        known = len(made.committed_ids)
        begin = max(0, known - back)
        part = ids[begin : known + ahead]
        told += step(made, len(PROMPT) + begin, part, min(accepted, len(part)))
        assert made.ids() == [*PROMPT, *ids[: known + ahead]]
    told += made.end(FinishReason.LENGTH)
    assert ids_of(told) == ids
    assert text_of(told) == spelt(ids)
    assert isinstance(told[-1], Finished)
    assert told[-1].receipt.committed_tokens == len(ids)
    assert made.ended


@given(ids=IDS, stop=st.text("abc", min_size=1, max_size=3), data=st.data())
def test_a_stop_string_ends_the_text_wherever_steps_are_cut(
    ids: list[int], stop: str, data: st.DataObject
) -> None:
    ids = [(token - 1) % 3 + 1 for token in ids]
    made, told = transcript(wanted(stops=[stop])), list[Told]()
    while len(made.committed_ids) < len(ids) and not made.ended:
        known = len(made.committed_ids)
        end = data.draw(st.integers(known + 1, len(ids)), "end")
        told += step(made, len(PROMPT) + known, ids[known:end], data.draw(st.integers(0, end - known)))
    whole = spelt(ids)
    if stop in whole:
        assert text_of(told) == whole[: whole.index(stop)]
        assert ids_of(told) == ids[: whole.index(stop) + len(stop)]
        assert [each.reason for each in told if isinstance(each, Finished)] == [FinishReason.STOP]
        assert isinstance(told[-1], Finished)
    else:
        assert not made.ended
        assert text_of([*told, *made.end(FinishReason.LENGTH)]) == whole


def test_no_stop_string_begins_in_tokens_that_must_not_end_the_text() -> None:
    made = transcript(wanted(stops=["ab"], stop_from=len(PROMPT) + 2))
    told = step(made, 3, (1, 2, 1, 2, 3))
    assert text_of(told) == "ab"
    assert ids_of(told) == [1, 2, 1, 2]


def test_each_chunk_is_a_drafters_or_the_targets_own() -> None:
    made = transcript(wanted())
    first, second = step(made, 3, (1, 2, 3), accepted=2)
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    assert (first.token_ids, first.accepted) == ((1, 2), 2)
    assert (second.token_ids, second.accepted) == ((3,), 0)
    # Of four guessed ones three are known.
    (third, _) = step(made, 3, (1, 2, 3, 4, 5), accepted=4)
    assert isinstance(third, Chunk)
    assert (third.token_ids, third.accepted) == ((4,), 1)
    (done,) = made.end(FinishReason.LENGTH)
    assert isinstance(done, Finished)
    assert (done.receipt.steps, done.receipt.accepted_tokens, done.receipt.acceptance_length) == (2, 3, 2.5)


def test_a_receipt_adds_up_what_verifiers_say_of_sources() -> None:
    made = transcript(wanted(stops=["bc"]))
    step(made, 3, (1, 1, 1), 2, [SourceTokens("text", 4, 1), SourceTokens("eagle", 6, 2)])
    # Another verifier goes on, whose drafter has other sources, and names them in its own order.
    step(made, 6, (1,), 0, [SourceTokens("eagle", 2, 0), SourceTokens("text", 1, 0)])
    # What comes behind a stop string is not told, so it was not accepted either.
    (*_, done) = step(made, 7, (1, 2, 3, 1, 1), 4, [SourceTokens("text", 5, 4)])
    assert isinstance(done, Finished)
    assert done.receipt.accepted_tokens == 5
    assert done.receipt.sources == (SourceTokens("text", 10, 4), SourceTokens("eagle", 8, 2))


def test_a_gap_is_an_error_and_tells_nothing() -> None:
    made = transcript(wanted())
    with pytest.raises(RequestError, match="left out positions 3 to 3"):
        step(made, 4, (1,))
    assert text_of(step(made, 3, (1,))) == "a"


@given(ids=IDS, known=st.integers(0, 30), reason=st.sampled_from([None, *FinishReason]))
def test_a_record_tells_what_is_untold_and_how_it_ended(
    ids: list[int], known: int, reason: FinishReason | None
) -> None:
    asked = wanted()
    made, told = transcript(asked), list[Told]()
    if first := ids[:known]:
        told += step(made, len(PROMPT), first)
    told += made.catch_up(record(asked, ids, reason), durable=True)
    assert ids_of(told) == ids
    assert made.ended == (reason is not None)
    if reason is not None:
        assert text_of(told) == spelt(ids)
        assert isinstance(told[-1], Finished)
        assert told[-1].reason is reason


@pytest.mark.parametrize(
    ("ids", "max_tokens", "reason"),
    [((1, STOP_ID), 100, FinishReason.STOP), ((1, 2), 2, FinishReason.LENGTH), ((1, 2), 3, None)],
)
def test_a_record_that_can_only_have_ended_has(
    ids: Sequence[int], max_tokens: int, reason: FinishReason | None
) -> None:
    """Its verifier died between its last tokens and the word that they were the last."""
    asked = wanted(max_tokens)
    made = transcript(asked)
    told = made.catch_up(record(asked, ids), durable=True)
    assert [each.reason for each in told if isinstance(each, Finished)] == ([reason] if reason else [])
    assert made.ended == (reason is not None)


@given(IDS, st.data())
def test_each_token_has_its_own_logprobs(ids: list[int], data: st.DataObject) -> None:
    asked = replace(wanted(), logprobs=SCORED)
    made = transcript(asked)
    prompt = [TokenLogprobs(-1.0, 1), TokenLogprobs(-2.0, 2)]
    told: list[Told] = []
    assert made.logprobs_to_come == SCORED
    while made.position < len(PROMPT) + len(ids):
        known = made.position - len(PROMPT)
        # A step at another verifier may begin before what is known; the record may have more than that.
        begin = data.draw(st.integers(0, known))
        end = data.draw(st.integers(known + 1, len(ids)))
        if data.draw(st.booleans()):
            told += made.catch_up(
                replace(
                    record(asked, ids[:end]),
                    logprobs=SCORED,
                    committed_logprobs=scores(len(PROMPT), end),
                ),
                durable=True,
            )
        else:
            told += made.take(
                len(PROMPT) + begin,
                ids[begin:end],
                accepted=data.draw(st.integers(0, end - begin)),
                drafted=5,
                durable=True,
                logprobs=scores(len(PROMPT) + begin, end - begin),
                prompt_logprobs=pack(prompt),
            )
    chunks = [each for each in told if isinstance(each, Chunk)]
    for chunk in chunks:
        places = range(chunk.position, chunk.position + len(chunk.token_ids))
        assert chunk.logprobs == tuple(map(logprob_of, places))
    assert made.committed_logprobs == scores(len(PROMPT), len(ids))
    of_prompt = [chunk.prompt_logprobs for chunk in chunks if chunk.prompt_logprobs]
    assert of_prompt == [tuple(prompt)] * len(of_prompt)
    assert len(of_prompt) <= 1
    assert made.logprobs_to_come == (replace(SCORED, prompt_top=None) if of_prompt else SCORED)


def test_a_stop_string_ends_the_logprobs_too() -> None:
    made = transcript(replace(wanted(stops=["b"]), logprobs=SCORED))
    told = made.take(3, [1, 2, 3], accepted=0, drafted=0, durable=True, logprobs=scores(3, 3))
    (chunk,) = (each for each in told if isinstance(each, Chunk))
    assert (chunk.token_ids, chunk.logprobs) == ((1, 2), (logprob_of(3), logprob_of(4)))


def test_a_verifier_that_sends_none_is_at_fault() -> None:
    made = transcript(replace(wanted(), logprobs=SCORED))
    with pytest.raises(RequestError, match="left out log-probabilities"):
        made.take(3, [1, 2], accepted=0, drafted=0, durable=True, logprobs=scores(3, 1))


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_stop_string_ends_the_text_and_is_part_of_it_where_that_is_wanted(shown: bool, pieces: int) -> None:
    asked = replace(wanted(stops=["cd"]), form=Form("text", stop_in_text=shown))
    made, told = transcript(asked), list[Told]()
    ids = [1, 2, 3, 4, 5]
    for at in range(0, 5, pieces):
        told += step(made, len(PROMPT) + at, ids[at : at + pieces])
        if made.ended:
            break
    assert text_of(told) == ("abcd" if shown else "ab")
    assert isinstance(told[-1], Finished)
    assert told[-1].stop == "cd"


@pytest.mark.parametrize(("shown", "text"), [(False, "ab"), (True, "abc")])
def test_a_stop_ids_text_is_told_only_where_that_is_wanted(shown: bool, text: str) -> None:
    asked = wanted()
    sampling = replace(asked.sampling, stop_token_ids=frozenset({3}))
    made = transcript(replace(asked, sampling=sampling, form=Form("text", stop_in_text=shown)))
    told = [*step(made, len(PROMPT), (1, 2, 3)), *made.end(FinishReason.STOP)]
    assert (text_of(told), ids_of(told)) == (text, [1, 2, 3])
    assert isinstance(told[-1], Finished)
    assert told[-1].stop == 3
    resumed = transcript(replace(asked, sampling=sampling, form=Form("text", stop_in_text=shown)))
    assert text_of(resumed.catch_up(record(asked, [1, 2, 3], FinishReason.STOP), durable=True)) == text


def test_a_text_that_no_stop_ended_names_none() -> None:
    made = transcript(wanted(stops=["x"]))
    told = [*step(made, len(PROMPT), (1, 2)), *made.end(FinishReason.LENGTH)]
    assert isinstance(told[-1], Finished)
    assert told[-1].stop is None


def test_a_receipt_counts_by_depth_what_the_steps_told() -> None:
    made = transcript(wanted())
    for position, accepted, drafts in [
        (3, 2, DraftCosts((2, 1, 1), 0.5, 100)),
        (6, 0, DraftCosts((3,), 0.25, 50)),
        (7, 0, NO_COSTS),
    ]:
        made.take(position, [1] * (accepted + 1), accepted=accepted, drafted=0, durable=True, drafts=drafts)
    (done,) = made.end(FinishReason.LENGTH)
    assert isinstance(done, Finished)
    assert done.receipt.accepted_by_depth == (1, 1)
    assert done.receipt.drafts == DraftCosts((5, 1, 1), 0.75, 150)
