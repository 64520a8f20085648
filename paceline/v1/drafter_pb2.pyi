from paceline.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("key", "verifier_address", "known_ids", "sampling", "tenant", "prediction_ids", "prompt_length")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    verifier_address: str
    known_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _session_pb2.SamplingParams
    tenant: str
    prediction_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_length: int
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., verifier_address: _Optional[str] = ..., known_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_session_pb2.SamplingParams, _Mapping]] = ..., tenant: _Optional[str] = ..., prediction_ids: _Optional[_Iterable[int]] = ..., prompt_length: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrafterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrafterStatusResponse(_message.Message):
    __slots__ = ("drafter_id", "method", "sessions", "max_sessions", "trees", "drafted_tokens", "accepted_tokens", "verifiers", "draining", "pool", "uptime_seconds", "busy_seconds", "version", "protocol_version", "clock_seconds")
    DRAFTER_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    drafter_id: str
    method: str
    sessions: int
    max_sessions: int
    trees: int
    drafted_tokens: int
    accepted_tokens: int
    verifiers: _containers.RepeatedScalarFieldContainer[str]
    draining: bool
    pool: str
    uptime_seconds: float
    busy_seconds: float
    version: str
    protocol_version: int
    clock_seconds: float
    def __init__(self, drafter_id: _Optional[str] = ..., method: _Optional[str] = ..., sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., trees: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., verifiers: _Optional[_Iterable[str]] = ..., draining: _Optional[bool] = ..., pool: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., busy_seconds: _Optional[float] = ..., version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., clock_seconds: _Optional[float] = ...) -> None: ...
