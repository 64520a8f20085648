from paceline.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenTree(_message.Message):
    __slots__ = ("key", "base_length", "token", "parent", "log_prob", "source")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    base_length: int
    token: _containers.RepeatedScalarFieldContainer[int]
    parent: _containers.RepeatedScalarFieldContainer[int]
    log_prob: _containers.RepeatedScalarFieldContainer[float]
    source: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., base_length: _Optional[int] = ..., token: _Optional[_Iterable[int]] = ..., parent: _Optional[_Iterable[int]] = ..., log_prob: _Optional[_Iterable[float]] = ..., source: _Optional[_Iterable[int]] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("row_token", "top_ids", "top_k", "row_parent")
    ROW_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ROW_PARENT_FIELD_NUMBER: _ClassVar[int]
    row_token: _containers.RepeatedScalarFieldContainer[int]
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_k: int
    row_parent: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, row_token: _Optional[_Iterable[int]] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_k: _Optional[int] = ..., row_parent: _Optional[_Iterable[int]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("key", "base_length", "committed", "accepted", "drafted", "draft_budget", "feedback", "finished")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BUDGET_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    key: _session_pb2.SessionKey
    base_length: int
    committed: _containers.RepeatedScalarFieldContainer[int]
    accepted: int
    drafted: int
    draft_budget: int
    feedback: Feedback
    finished: bool
    def __init__(self, key: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., base_length: _Optional[int] = ..., committed: _Optional[_Iterable[int]] = ..., accepted: _Optional[int] = ..., drafted: _Optional[int] = ..., draft_budget: _Optional[int] = ..., feedback: _Optional[_Union[Feedback, _Mapping]] = ..., finished: _Optional[bool] = ...) -> None: ...
