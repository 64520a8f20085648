"""What tests of bad input begin with: sound requests, and a prompt that fits no context."""

from __future__ import annotations

from typing import Any

from paceline.v1 import session_pb2, verifier_pb2
from tests.pods import MODEL
from tests.tiny import CONTEXT

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
TOO_LONG = [5] * (CONTEXT + 1)


def opening(**changes: Any) -> verifier_pb2.OpenRequest:
    """A sound request to a verifier but for the changes."""
    fields: dict[str, Any] = {
        "key": session_pb2.SessionKey(session_id="bad-input", epoch=1),
        "prompt_ids": [5, 6],
        "sampling": session_pb2.SamplingParams(top_p=1, max_tokens=4),
    }
    return verifier_pb2.OpenRequest(**{**fields, **changes})
