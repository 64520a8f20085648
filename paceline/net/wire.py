"""Converts protos to plain values and back. Values from protos are checked against all bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable

from paceline.constraints.constraint import Constraint, ConstraintError, Kind
from paceline.features import (
    MAX_CHUNK_BYTES,
    MAX_LAYERS,
    MAX_REQUESTS,
    STATE_BYTES,
    FeatureChunk,
    FeatureGrant,
    FeatureRequest,
)
from paceline.logprobs import MAX_TOP_LOGPROBS, LogprobsWanted, TokenLogprobs
from paceline.net import parameters
from paceline.net.handshake import MAX_SOURCES, Hello
from paceline.sampling import SamplingError, SamplingParams
from paceline.session import (
    METHOD_NAME,
    DraftCosts,
    FinishReason,
    Receipt,
    SessionKey,
    SourceTokens,
    SpeculationLimits,
)
from paceline.tree import TokenTree, TreeFault
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2
from paceline.verdict import Feedback, Verdict

SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_EPOCH = 2**53 - 1  # the store's scripts count in doubles

_REASONS = {
    FinishReason.STOP: session_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: session_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: session_pb2.FINISH_REASON_CANCELLED,
}
_REASONS_BACK = {value: key for key, value in _REASONS.items()}

_KINDS = {
    Kind.JSON_OBJECT: session_pb2.CONSTRAINT_KIND_JSON_OBJECT,
    Kind.JSON_SCHEMA: session_pb2.CONSTRAINT_KIND_JSON_SCHEMA,
    Kind.REGEX: session_pb2.CONSTRAINT_KIND_REGEX,
    Kind.CHOICE: session_pb2.CONSTRAINT_KIND_CHOICE,
    Kind.GRAMMAR: session_pb2.CONSTRAINT_KIND_GRAMMAR,
}
_KINDS_BACK = {value: key for key, value in _KINDS.items()}

_FAULTS = {
    TreeFault.MALFORMED: verifier_pb2.SESSION_ERROR_CODE_MALFORMED,
    TreeFault.BAD_PARENT: verifier_pb2.SESSION_ERROR_CODE_BAD_PARENT,
    TreeFault.DUPLICATE_SIBLING: verifier_pb2.SESSION_ERROR_CODE_DUPLICATE_SIBLING,
    TreeFault.TOKEN_OUT_OF_RANGE: verifier_pb2.SESSION_ERROR_CODE_TOKEN_OUT_OF_RANGE,
    TreeFault.TOO_MANY_NODES: verifier_pb2.SESSION_ERROR_CODE_TOO_MANY_NODES,
    TreeFault.TOO_DEEP: verifier_pb2.SESSION_ERROR_CODE_TOO_DEEP,
}


class WireError(ValueError):
    """A message breaks a bound. `field` names the field, the text says how."""

    field: str | None

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def key_from_proto(message: session_pb2.SessionKey) -> SessionKey:
    """Raises `WireError` for an id that is not 1 to 64 of [A-Za-z0-9_-], or for epoch 0."""
    if not SESSION_ID.fullmatch(message.session_id):
        raise WireError("key.session_id", "must be 1 to 64 characters of [A-Za-z0-9_-]")
    if not 1 <= message.epoch <= MAX_EPOCH:
        raise WireError("key.epoch", f"must be 1 to {MAX_EPOCH}, got {message.epoch}")
    return SessionKey(message.session_id, message.epoch)


def key_to_proto(key: SessionKey) -> session_pb2.SessionKey:
    """The message of a key."""
    return session_pb2.SessionKey(session_id=key.session_id, epoch=key.epoch)


def ids_from_proto(values: Iterable[int], *, vocab_size: int, field: str) -> tuple[int, ...]:
    """Token ids. Raises `WireError` naming `field` for an id outside the vocabulary."""
    ids = tuple(values)
    if ids and max(ids) >= vocab_size:
        index = next(index for index, token in enumerate(ids) if token >= vocab_size)
        raise WireError(field, f"id {ids[index]} at index {index} is not in the vocabulary of {vocab_size}")
    return ids


def sampling_from_proto(message: session_pb2.SamplingParams, *, vocab_size: int) -> SamplingParams:
    """Raises `WireError` naming the field that is out of its bounds."""
    given = parameters.values(message, SamplingParams)
    if message.HasField("constraint"):
        given["constraint"] = constraint_from_proto(message.constraint, field="sampling.constraint")
    sampling = SamplingParams(**given)
    if sampling.constraint is not None and not sampling.stop_token_ids:
        raise WireError("sampling.stop_token_ids", "a text under a constraint needs an id that ends it")
    try:
        sampling.check(vocab_size)
    except SamplingError as error:
        raise WireError(f"sampling.{error.field}", str(error)) from None
    return sampling


def sampling_to_proto(sampling: SamplingParams) -> session_pb2.SamplingParams:
    """The message of sampling parameters."""
    message = session_pb2.SamplingParams()
    parameters.write(sampling, message)
    if sampling.constraint is not None:
        message.constraint.CopyFrom(constraint_to_proto(sampling.constraint))
    return message


def constraint_from_proto(message: session_pb2.Constraint, *, field: str) -> Constraint:
    """Raises `WireError` naming `field` for one that breaks a bound."""
    if message.kind not in _KINDS_BACK:
        raise WireError(f"{field}.kind", f"{message.kind} is no kind of constraint")
    constraint = Constraint(_KINDS_BACK[message.kind], message.text, message.lenient)
    try:
        constraint.check()
    except ConstraintError as error:
        raise WireError(field, str(error)) from None
    return constraint


def constraint_to_proto(constraint: Constraint) -> session_pb2.Constraint:
    """The message of a constraint."""
    return session_pb2.Constraint(
        kind=_KINDS[constraint.kind], text=constraint.text, lenient=constraint.lenient
    )


def logprobs_from_proto(message: session_pb2.LogprobsWanted, *, vocab_size: int) -> LogprobsWanted:
    """Raises `WireError` for more tokens than may be asked for, or than there are."""
    wanted = LogprobsWanted(
        message.top if message.HasField("top") else None,
        message.prompt_top if message.HasField("prompt_top") else None,
    )
    most = min(MAX_TOP_LOGPROBS, vocab_size)
    for name, count in (("top", wanted.top), ("prompt_top", wanted.prompt_top)):
        if count is not None and count > most:
            raise WireError(f"logprobs.{name}", f"is at most {most}, got {count}")
    return wanted


def logprobs_to_proto(wanted: LogprobsWanted) -> session_pb2.LogprobsWanted:
    """The message of wanted log-probabilities."""
    return session_pb2.LogprobsWanted(top=wanted.top, prompt_top=wanted.prompt_top)


def token_logprobs_from_proto(message: session_pb2.TokenLogprobs) -> TokenLogprobs:
    """Those of one token."""
    return TokenLogprobs(message.logprob, message.rank, tuple(message.top_ids), tuple(message.top_logprobs))


def token_logprobs_to_proto(token: TokenLogprobs) -> session_pb2.TokenLogprobs:
    """The message of one token's."""
    return session_pb2.TokenLogprobs(
        logprob=token.logprob, rank=token.rank, top_ids=token.top_ids, top_logprobs=token.top_logprobs
    )


def hello_from_proto(message: verifier_pb2.Hello) -> Hello:
    """What a drafter says of itself, unchecked: see `handshake.check_hello`.

    Of a drafter of version 1 what that version knew: no features, and no sources. Of what is repeated more
    often than it may be, no more than shows that.
    """
    told = message.protocol_version > 1
    return Hello(
        protocol_version=message.protocol_version,
        drafter_id=message.drafter_id,
        vocab_fingerprint=message.vocab_fingerprint,
        feedback_top_k=message.feedback_top_k,
        features=tuple(
            FeatureRequest(tuple(each.layers[: MAX_LAYERS + 1]), each.window_bytes, each.weights_fingerprint)
            for each in (message.features[: MAX_REQUESTS + 1] if told else ())
        ),
        sources=tuple(message.sources[: MAX_SOURCES + 1]) if told else (),
    )


def hello_to_proto(hello: Hello) -> verifier_pb2.Hello:
    """The message of a Hello."""
    return verifier_pb2.Hello(
        protocol_version=hello.protocol_version,
        drafter_id=hello.drafter_id,
        vocab_fingerprint=hello.vocab_fingerprint,
        feedback_top_k=hello.feedback_top_k,
        features=[
            verifier_pb2.FeatureRequest(
                layers=request.layers,
                window_bytes=request.window_bytes,
                weights_fingerprint=request.weights_fingerprint,
            )
            for request in hello.features
        ],
        sources=hello.sources,
    )


def grant_from_proto(message: verifier_pb2.FeatureGrant) -> FeatureGrant:
    """Raises `WireError` for a grant of no layer, no width or an unknown type."""
    if not message.layers or not message.width:
        raise WireError("features", "a grant must name layers and a width")
    if message.dtype not in STATE_BYTES:
        raise WireError("features.dtype", f"{message.dtype[:32]!r} is not one of {', '.join(STATE_BYTES)}")
    return FeatureGrant(tuple(message.layers), message.width, message.dtype)


def grant_to_proto(grant: FeatureGrant) -> verifier_pb2.FeatureGrant:
    """The message of a grant."""
    return verifier_pb2.FeatureGrant(layers=grant.layers, width=grant.width, dtype=grant.dtype)


def chunk_from_proto(message: verifier_pb2.FeatureChunk, grant: FeatureGrant) -> FeatureChunk:
    """Raises `WireError` where the states are not those of `count` positions, as granted."""
    # Each look at the field copies it.
    states = message.states
    if not message.count or len(states) != message.count * grant.position_bytes:
        raise WireError(
            "features.states",
            f"{len(states)} bytes are not {message.count} positions of {grant.position_bytes}",
        )
    if len(states) > MAX_CHUNK_BYTES:
        raise WireError("features.states", f"{len(states)} bytes, at most {MAX_CHUNK_BYTES} are taken")
    return FeatureChunk(key_from_proto(message.key), message.position, message.count, states)


def chunk_to_proto(chunk: FeatureChunk) -> verifier_pb2.FeatureChunk:
    """The message of a chunk."""
    return verifier_pb2.FeatureChunk(
        key=key_to_proto(chunk.key), position=chunk.position, count=chunk.count, states=chunk.states
    )


def tree_from_proto(message: tree_pb2.TokenTree) -> tuple[SessionKey, int, TokenTree]:
    """Key, base length and tree, unchecked: see `tree.check`."""
    tree = TokenTree(
        tuple(message.token), tuple(message.parent), tuple(message.log_prob), tuple(message.source)
    )
    return key_from_proto(message.key), message.base_length, tree


def tree_to_proto(key: SessionKey, base_length: int, tree: TokenTree) -> tree_pb2.TokenTree:
    """The message of a tree that hangs on `base_length`."""
    return tree_pb2.TokenTree(
        key=key_to_proto(key),
        base_length=base_length,
        token=tree.tokens,
        parent=tree.parents,
        log_prob=tree.log_probs,
        source=tree.sources,
    )


def fault_to_code(fault: TreeFault) -> verifier_pb2.SessionErrorCode:
    """The wire's name of what is wrong with a tree."""
    return _FAULTS[fault]


def verdict_from_proto(message: tree_pb2.Verdict, *, vocab_size: int) -> Verdict:
    """Raises `WireError` for ids outside the vocabulary or feedback whose lengths do not fit."""
    feedback = None
    if message.HasField("feedback"):
        back = message.feedback
        if len(back.top_ids) != back.top_k * len(back.row_token):
            raise WireError("feedback.top_ids", f"{len(back.top_ids)} ids are not top_k per row")
        if len(back.row_parent) != len(back.row_token) or any(
            not min(row - 1, 0) <= parent < row for row, parent in enumerate(back.row_parent)
        ):
            raise WireError("feedback.row_parent", "each row's parent must be an earlier row, the first's -1")
        feedback = Feedback(
            ids_from_proto(back.row_token, vocab_size=vocab_size, field="feedback.row_token"),
            tuple(back.row_parent),
            ids_from_proto(back.top_ids, vocab_size=vocab_size, field="feedback.top_ids"),
            back.top_k,
        )
    return Verdict(
        key=key_from_proto(message.key),
        base_length=message.base_length,
        committed=ids_from_proto(message.committed, vocab_size=vocab_size, field="committed"),
        accepted=message.accepted,
        drafted=message.drafted,
        draft_budget=message.draft_budget,
        feedback=feedback,
        finished=message.finished,
    )


def verdict_to_proto(verdict: Verdict) -> tree_pb2.Verdict:
    """The message of a verdict."""
    feedback = None
    if verdict.feedback is not None:
        feedback = tree_pb2.Feedback(
            row_token=verdict.feedback.row_tokens,
            row_parent=verdict.feedback.row_parents,
            top_ids=verdict.feedback.top_ids,
            top_k=verdict.feedback.top_k,
        )
    return tree_pb2.Verdict(
        key=key_to_proto(verdict.key),
        base_length=verdict.base_length,
        committed=verdict.committed,
        accepted=verdict.accepted,
        drafted=verdict.drafted,
        draft_budget=verdict.draft_budget,
        feedback=feedback,
        finished=verdict.finished,
    )


def receipt_from_proto(message: session_pb2.Receipt) -> Receipt:
    """The receipt in a message."""
    return Receipt(
        message.steps,
        message.committed_tokens,
        message.drafted_tokens,
        message.accepted_tokens,
        message.drafted_steps,
        sources_from_proto(message.sources),
        tuple(message.accepted_by_depth),
        drafts_from_proto(message),
        message.queued_seconds,
        message.prefill_seconds,
        message.decode_seconds,
    )


def receipt_to_proto(receipt: Receipt) -> session_pb2.Receipt:
    """The message of a receipt."""
    return session_pb2.Receipt(
        steps=receipt.steps,
        committed_tokens=receipt.committed_tokens,
        drafted_tokens=receipt.drafted_tokens,
        accepted_tokens=receipt.accepted_tokens,
        drafted_steps=receipt.drafted_steps,
        sources=sources_to_proto(receipt.sources),
        drafted_by_depth=receipt.drafts.by_depth,
        accepted_by_depth=receipt.accepted_by_depth,
        queued_seconds=receipt.queued_seconds,
        prefill_seconds=receipt.prefill_seconds,
        decode_seconds=receipt.decode_seconds,
        draft_wait_seconds=receipt.drafts.wait_seconds,
        draft_bytes=receipt.drafts.bytes,
    )


def drafts_from_proto(message: session_pb2.Receipt | verifier_pb2.CommittedTokens) -> DraftCosts:
    """What drafts cost, of a session or of a step."""
    return DraftCosts(tuple(message.drafted_by_depth), message.draft_wait_seconds, message.draft_bytes)


def limits_from_proto(message: session_pb2.SpeculationLimits) -> SpeculationLimits:
    """Raises `WireError` for a name that no method has."""
    if message.method and not METHOD_NAME.fullmatch(message.method):
        raise WireError("speculation.method", "is 1 to 32 of a-z 0-9 _ -")
    return SpeculationLimits(message.max_nodes, message.max_depth, message.method)


def limits_to_proto(limits: SpeculationLimits) -> session_pb2.SpeculationLimits:
    """The message of a client's limits."""
    return session_pb2.SpeculationLimits(
        max_nodes=limits.max_nodes, max_depth=limits.max_depth, method=limits.method
    )


def sources_from_proto(messages: Iterable[session_pb2.SourceTokens]) -> tuple[SourceTokens, ...]:
    """What came of each source's nodes."""
    return tuple(SourceTokens(each.source, each.drafted_tokens, each.accepted_tokens) for each in messages)


def sources_to_proto(sources: Iterable[SourceTokens]) -> list[session_pb2.SourceTokens]:
    """The messages of what came of each source's nodes."""
    return [
        session_pb2.SourceTokens(
            source=each.source, drafted_tokens=each.drafted_tokens, accepted_tokens=each.accepted_tokens
        )
        for each in sources
    ]


def finish_reason_from_proto(value: session_pb2.FinishReason) -> FinishReason:
    """Raises `WireError` for a reason that this version does not know."""
    try:
        return _REASONS_BACK[value]
    except KeyError:
        raise WireError("reason", f"unknown finish reason {value}") from None


def finish_reason_to_proto(reason: FinishReason) -> session_pb2.FinishReason:
    """The wire's name of a reason."""
    return _REASONS[reason]
