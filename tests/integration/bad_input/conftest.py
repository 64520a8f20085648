"""Whatever a test sends: the fleet serves on, and logs no error."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.bad_input import COMPLETION
from tests.pods import Pods


@pytest.fixture(autouse=True)
def _it_still_serves_afterwards(fleet: Pods) -> Iterator[None]:
    yield
    answer = httpx.post(f"{fleet.http}/v1/completions", json=COMPLETION, timeout=30)
    assert answer.status_code == 200


@pytest.fixture(autouse=True, scope="module")
def _no_log_has_an_error(fleet: Pods) -> Iterator[None]:
    yield
    for pod in fleet.pods.values():
        text = pod.log.read_text()
        assert "Traceback" not in text
        assert "[error" not in text
