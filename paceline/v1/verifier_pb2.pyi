from paceline.v1 import session_pb2 as _session_pb2
from paceline.v1 import tree_pb2 as _tree_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_ERROR_CODE_UNSPECIFIED: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_NOT_FOUND: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_STALE_EPOCH: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_BAD_PARENT: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_DUPLICATE_SIBLING: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_TOKEN_OUT_OF_RANGE: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_TOO_MANY_NODES: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_TOO_DEEP: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_MALFORMED: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_BAD_BASE: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_NOT_JOINED: _ClassVar[SessionErrorCode]
    SESSION_ERROR_CODE_UNASKED: _ClassVar[SessionErrorCode]
SESSION_ERROR_CODE_UNSPECIFIED: SessionErrorCode
SESSION_ERROR_CODE_NOT_FOUND: SessionErrorCode
SESSION_ERROR_CODE_STALE_EPOCH: SessionErrorCode
SESSION_ERROR_CODE_BAD_PARENT: SessionErrorCode
SESSION_ERROR_CODE_DUPLICATE_SIBLING: SessionErrorCode
SESSION_ERROR_CODE_TOKEN_OUT_OF_RANGE: SessionErrorCode
SESSION_ERROR_CODE_TOO_MANY_NODES: SessionErrorCode
SESSION_ERROR_CODE_TOO_DEEP: SessionErrorCode
SESSION_ERROR_CODE_MALFORMED: SessionErrorCode
SESSION_ERROR_CODE_BAD_BASE: SessionErrorCode
SESSION_ERROR_CODE_NOT_JOINED: SessionErrorCode
SESSION_ERROR_CODE_UNASKED: SessionErrorCode

class OpenRequest(_message.Message):
    __slots__ = ("key", "prompt_ids", "committed_ids", "sampling", "model_id", "reply", "plain", "logprobs", "committed_logprobs", "cache_salt", "speculation")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    committed_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _session_pb2.SamplingParams
    model_id: str
    reply: str
    plain: bool
    logprobs: _session_pb2.LogprobsWanted
    committed_logprobs: bytes
    cache_salt: str
    speculation: _session_pb2.SpeculationLimits
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., committed_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_session_pb2.SamplingParams, _Mapping]] = ..., model_id: _Optional[str] = ..., reply: _Optional[str] = ..., plain: _Optional[bool] = ..., logprobs: _Optional[_Union[_session_pb2.LogprobsWanted, _Mapping]] = ..., committed_logprobs: _Optional[bytes] = ..., cache_salt: _Optional[str] = ..., speculation: _Optional[_Union[_session_pb2.SpeculationLimits, _Mapping]] = ...) -> None: ...

class OpenResponse(_message.Message):
    __slots__ = ("opened", "tokens", "finished", "alive", "drafter_aside")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_ASIDE_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    tokens: CommittedTokens
    finished: Finished
    alive: Alive
    drafter_aside: DrafterAside
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., tokens: _Optional[_Union[CommittedTokens, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ..., drafter_aside: _Optional[_Union[DrafterAside, _Mapping]] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrafterAside(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: int
    def __init__(self, seconds: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommittedTokens(_message.Message):
    __slots__ = ("position", "token_ids", "accepted", "durable", "drafted", "sources", "logprobs", "prompt_logprobs", "drafted_by_depth", "draft_wait_seconds", "draft_bytes")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_BY_DEPTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    accepted: int
    durable: bool
    drafted: int
    sources: _containers.RepeatedCompositeFieldContainer[_session_pb2.SourceTokens]
    logprobs: bytes
    prompt_logprobs: bytes
    drafted_by_depth: _containers.RepeatedScalarFieldContainer[int]
    draft_wait_seconds: float
    draft_bytes: int
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., accepted: _Optional[int] = ..., durable: _Optional[bool] = ..., drafted: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[_session_pb2.SourceTokens, _Mapping]]] = ..., logprobs: _Optional[bytes] = ..., prompt_logprobs: _Optional[bytes] = ..., drafted_by_depth: _Optional[_Iterable[int]] = ..., draft_wait_seconds: _Optional[float] = ..., draft_bytes: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "receipt")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    reason: _session_pb2.FinishReason
    receipt: _session_pb2.Receipt
    def __init__(self, reason: _Optional[_Union[_session_pb2.FinishReason, str]] = ..., receipt: _Optional[_Union[_session_pb2.Receipt, _Mapping]] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("hello", "joins", "leaves", "trees", "features_taken")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    JOINS_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_TAKEN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    joins: _containers.RepeatedCompositeFieldContainer[Join]
    leaves: _containers.RepeatedScalarFieldContainer[str]
    trees: _containers.RepeatedCompositeFieldContainer[_tree_pb2.TokenTree]
    features_taken: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., joins: _Optional[_Iterable[_Union[Join, _Mapping]]] = ..., leaves: _Optional[_Iterable[str]] = ..., trees: _Optional[_Iterable[_Union[_tree_pb2.TokenTree, _Mapping]]] = ..., features_taken: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "drafter_id", "vocab_fingerprint", "feedback_top_k", "features", "sources")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_ID_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_TOP_K_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    drafter_id: str
    vocab_fingerprint: str
    feedback_top_k: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureRequest]
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., drafter_id: _Optional[str] = ..., vocab_fingerprint: _Optional[str] = ..., feedback_top_k: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureRequest, _Mapping]]] = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class FeatureRequest(_message.Message):
    __slots__ = ("layers", "window_bytes", "weights_fingerprint")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    window_bytes: int
    weights_fingerprint: str
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., window_bytes: _Optional[int] = ..., weights_fingerprint: _Optional[str] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("key", "known_length", "features_from")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KNOWN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FROM_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    known_length: int
    features_from: int
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., known_length: _Optional[int] = ..., features_from: _Optional[int] = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("welcome", "verdicts", "errors", "features")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    verdicts: _containers.RepeatedCompositeFieldContainer[_tree_pb2.Verdict]
    errors: _containers.RepeatedCompositeFieldContainer[SessionError]
    features: _containers.RepeatedCompositeFieldContainer[FeatureChunk]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., verdicts: _Optional[_Iterable[_Union[_tree_pb2.Verdict, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[SessionError, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[FeatureChunk, _Mapping]]] = ...) -> None: ...

class FeatureChunk(_message.Message):
    __slots__ = ("key", "position", "count", "states")
    KEY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    position: int
    count: int
    states: bytes
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., position: _Optional[int] = ..., count: _Optional[int] = ..., states: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("verifier_id", "model_id", "vocab_fingerprint", "vocab_size", "max_tree_nodes", "max_tree_depth", "features", "weights_fingerprint")
    VERIFIER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_TREE_NODES_FIELD_NUMBER: _ClassVar[int]
    MAX_TREE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    verifier_id: str
    model_id: str
    vocab_fingerprint: str
    vocab_size: int
    max_tree_nodes: int
    max_tree_depth: int
    features: FeatureGrant
    weights_fingerprint: str
    def __init__(self, verifier_id: _Optional[str] = ..., model_id: _Optional[str] = ..., vocab_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_tree_nodes: _Optional[int] = ..., max_tree_depth: _Optional[int] = ..., features: _Optional[_Union[FeatureGrant, _Mapping]] = ..., weights_fingerprint: _Optional[str] = ...) -> None: ...

class FeatureGrant(_message.Message):
    __slots__ = ("layers", "width", "dtype")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    width: int
    dtype: str
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., width: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("session_id", "code", "message")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    code: SessionErrorCode
    message: str
    def __init__(self, session_id: _Optional[str] = ..., code: _Optional[_Union[SessionErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class PrefixesRequest(_message.Message):
    __slots__ = ("instance", "cursor")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    instance: int
    cursor: int
    def __init__(self, instance: _Optional[int] = ..., cursor: _Optional[int] = ...) -> None: ...

class PrefixesResponse(_message.Message):
    __slots__ = ("instance", "cursor", "anew", "more", "block_size", "added", "removed")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    ANEW_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    instance: int
    cursor: int
    anew: bool
    more: bool
    block_size: int
    added: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, instance: _Optional[int] = ..., cursor: _Optional[int] = ..., anew: _Optional[bool] = ..., more: _Optional[bool] = ..., block_size: _Optional[int] = ..., added: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class VerifierStatusRequest(_message.Message):
    __slots__ = ("gateway_id", "waiting")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    waiting: int
    def __init__(self, gateway_id: _Optional[str] = ..., waiting: _Optional[int] = ...) -> None: ...

class VerifierStatusResponse(_message.Message):
    __slots__ = ("verifier_id", "model_id", "vocab_fingerprint", "vocab_size", "max_context", "sessions", "max_sessions", "kv_used", "kv_total", "session_steps", "drafted_tokens", "accepted_tokens", "committed_tokens", "drafters", "draining", "device", "stalled", "drafters_aside", "pool", "uptime_seconds", "busy_seconds", "steps", "rows", "full_rows", "waiting", "wanted_trees", "missing_trees", "waiting_elsewhere", "waiting_tokens", "prompt_token_seconds", "step_seconds", "session_seconds", "version", "protocol_version", "clock_seconds")
    VERIFIER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_USED_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SESSION_STEPS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_ASIDE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FULL_ROWS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WANTED_TREES_FIELD_NUMBER: _ClassVar[int]
    MISSING_TREES_FIELD_NUMBER: _ClassVar[int]
    WAITING_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    verifier_id: str
    model_id: str
    vocab_fingerprint: str
    vocab_size: int
    max_context: int
    sessions: int
    max_sessions: int
    kv_used: int
    kv_total: int
    session_steps: int
    drafted_tokens: int
    accepted_tokens: int
    committed_tokens: int
    drafters: _containers.RepeatedScalarFieldContainer[str]
    draining: bool
    device: str
    stalled: bool
    drafters_aside: _containers.RepeatedScalarFieldContainer[str]
    pool: str
    uptime_seconds: float
    busy_seconds: float
    steps: int
    rows: int
    full_rows: int
    waiting: int
    wanted_trees: int
    missing_trees: int
    waiting_elsewhere: int
    waiting_tokens: int
    prompt_token_seconds: float
    step_seconds: float
    session_seconds: float
    version: str
    protocol_version: int
    clock_seconds: float
    def __init__(self, verifier_id: _Optional[str] = ..., model_id: _Optional[str] = ..., vocab_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_context: _Optional[int] = ..., sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., kv_used: _Optional[int] = ..., kv_total: _Optional[int] = ..., session_steps: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., committed_tokens: _Optional[int] = ..., drafters: _Optional[_Iterable[str]] = ..., draining: _Optional[bool] = ..., device: _Optional[str] = ..., stalled: _Optional[bool] = ..., drafters_aside: _Optional[_Iterable[str]] = ..., pool: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., busy_seconds: _Optional[float] = ..., steps: _Optional[int] = ..., rows: _Optional[int] = ..., full_rows: _Optional[int] = ..., waiting: _Optional[int] = ..., wanted_trees: _Optional[int] = ..., missing_trees: _Optional[int] = ..., waiting_elsewhere: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., prompt_token_seconds: _Optional[float] = ..., step_seconds: _Optional[float] = ..., session_seconds: _Optional[float] = ..., version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., clock_seconds: _Optional[float] = ...) -> None: ...
