"""What a request to the API server failed of, in a line of the log."""

from __future__ import annotations

import json


def why(error: Exception) -> str:
    """The server's own words, if it has answered; otherwise the error's, cut."""
    try:
        told = json.loads(getattr(error, "body", ""))
        text = f"{told['code']} {told['message']}"
    except (TypeError, ValueError, KeyError):
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
