"""API keys: what a key file may hold, who a key belongs to, and what a change of the file does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway import keys
from gateway.caller import ANYBODY
from gateway.errors import RequestError
from gateway.keys import ApiKeys, KeyFileError, authenticate
from gateway.limits import UsageLimits
from paceline.api_keys import Scope, api_key_hash, new_api_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = new_api_key()
Write = Callable[..., Path]


def entry(id: str = "team-a", key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"id": id, "sha256": [api_key_hash(key)], **more}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writing(*entries: dict[str, Any]) -> Path:
        path = tmp_path / "keys.json"
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps({"keys": entries}))
        os.replace(fresh, path)
        return path

    return writing


@pytest.fixture(autouse=True)
def looking_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0.0)


def test_keys_are_long_random_and_no_two_the_same() -> None:
    made = {new_api_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("pk-") and len(key) >= 46 for key in made)


def test_a_key_is_its_holder_with_scopes_and_limits(write: Write) -> None:
    limits = {"concurrent_sessions": 2, "queued_requests": 0, "tokens_per_minute": 100}
    caller = ApiKeys(write(entry(scopes=["generate", "status"], limits=limits))).caller(KEY)
    assert caller is not None
    assert (caller.id, set(caller.scopes)) == ("team-a", {Scope.GENERATE, Scope.STATUS})
    assert caller.limits == UsageLimits(2, 0, 100)


def test_an_entry_without_scopes_may_generate_and_nothing_else(write: Write) -> None:
    caller = ApiKeys(write(entry())).caller(KEY)
    assert caller is not None
    assert (set(caller.scopes), caller.limits) == ({Scope.GENERATE}, UsageLimits(queued_requests=16))


def test_a_holder_is_one_tenant_at_every_gateway_and_its_name_is_not_told(write: Write) -> None:
    other = new_api_key()
    path = write(entry(), entry("team-b", other))
    tenants = [gateway.caller(key) for gateway in (ApiKeys(path), ApiKeys(path)) for key in (KEY, other)]
    a, b, again, _ = (caller.tenant for caller in tenants if caller is not None)
    assert a == again != b
    assert a
    assert b
    assert "team" not in a
    elsewhere = ApiKeys(write(entry("team-a", other))).caller(other)
    assert elsewhere is not None
    assert elsewhere.tenant not in (a, b)


def test_holders_who_share_what_is_learned_are_one_tenant_with_anybody(write: Write) -> None:
    other = new_api_key()
    shared = ApiKeys(write(entry(), entry("team-b", other)), one_tenant=True)
    for key in (KEY, other):
        caller = shared.caller(key)
        assert caller is not None
        assert caller.tenant == ANYBODY.tenant


@pytest.mark.parametrize(
    "guess",
    ["", "pk-", KEY[:-1], KEY + "x", KEY.upper(), api_key_hash(KEY), "é\0", "x" * 10**6],
    # Ids that are the same in every process of a test run.
    ids=["empty", "prefix", "cut", "longer", "upper case", "its hash", "no ASCII", "huge"],
)
def test_what_is_not_a_key_is_nobodys(write: Write, guess: str) -> None:
    assert ApiKeys(write(entry())).caller(guess) is None


def test_a_key_expires(write: Write) -> None:
    now = NOW
    found = ApiKeys(write(entry(expires=(NOW + timedelta(seconds=1)).isoformat())), now=lambda: now)
    assert found.caller(KEY) is not None
    now = NOW + timedelta(seconds=1)
    assert found.caller(KEY) is None


def test_a_key_is_replaced_without_a_gap(write: Write) -> None:
    new = new_api_key()
    both = {"id": "team-a", "sha256": [api_key_hash(KEY), api_key_hash(new)]}
    found = ApiKeys(write(entry()))
    assert found.caller(new) is None
    write(both)
    assert found.caller(KEY) == found.caller(new) is not None
    write(entry(key=new))
    assert found.caller(KEY) is None
    assert found.caller(new) is not None


def test_a_symbolic_link_that_leads_elsewhere_is_a_change(tmp_path: Path, write: Write) -> None:
    # As Kubernetes updates a mounted Secret.
    for name, holder in (("one", "a"), ("two", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_text(json.dumps({"keys": [entry(holder)]}))
    data, path = tmp_path / "data", tmp_path / "linked.json"
    data.symlink_to(tmp_path / "one")
    path.symlink_to(data / "keys.json")
    found = ApiKeys(path)
    (tmp_path / "next").symlink_to(tmp_path / "two")
    os.replace(tmp_path / "next", data)
    caller = found.caller(KEY)
    assert caller is not None
    assert caller.id == "b"


@pytest.mark.parametrize("content", [b"", b"{", b'{"keys": 3}', b"\xff\xfe"])
def test_a_broken_file_leaves_the_keys_in_force_until_it_is_mended(write: Write, content: bytes) -> None:
    path = write(entry())
    found = ApiKeys(path)
    path.write_bytes(content)
    assert found.caller(KEY) is not None
    write(entry("team-b"))
    caller = found.caller(KEY)
    assert caller is not None
    assert caller.id == "team-b"


def test_a_file_that_is_gone_leaves_the_keys_in_force(write: Write) -> None:
    path = write(entry())
    found = ApiKeys(path)
    path.unlink()
    assert found.caller(KEY) is not None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(sha256=["abc"])], r"keys.0.sha256.0"),
        ([entry(sha256=[])], r"keys.0.sha256"),
        ([entry(sha256=[KEY])], r"keys.0.sha256.0"),
        ([entry(id="a b")], r"keys.0.id"),
        ([entry(id="")], r"keys.0.id"),
        ([entry(scope=["generate"])], r"keys.0.scope: Extra"),
        ([entry(scopes=["everything"])], r"keys.0.scopes"),
        ([entry(expires="2027-01-01T00:00:00")], r"keys.0.expires.*timezone"),
        ([entry(limits={"tokens_per_minute": 0})], r"keys.0.limits.tokens_per_minute"),
        ([entry(limits={"tokens": 1})], r"keys.0.limits.tokens: Extra"),
        ([entry(), entry("team-b")], r"team-b has a hash that stands in the file already"),
        ([entry(), entry(key="other")], r"two entries have the same id"),
    ],
)
def test_a_bad_entry_is_named_and_no_hash_is_quoted(
    write: Write, entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(KeyFileError, match=message) as caught:
        ApiKeys(write(*entries))
    assert api_key_hash(KEY) not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nothing-here"):
        ApiKeys(tmp_path / "nothing-here")


def test_without_keys_anybody_may_do_anything() -> None:
    assert authenticate(None, "", Scope.STATUS) is ANYBODY
    assert ANYBODY.scopes == set(Scope)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", KEY, f"Basic {KEY}", "Bearer pk-wrong"],
    ids=["none", "no key", "empty key", "no scheme", "another scheme", "wrong key"],
)
def test_a_request_without_a_good_key_is_refused(write: Write, authorization: str) -> None:
    with pytest.raises(RequestError) as caught:
        authenticate(ApiKeys(write(entry())), authorization, None)
    assert caught.value.kind.status == 401
    assert caught.value.kind.code == "invalid_api_key"


def test_a_key_without_the_scope_is_refused_and_with_it_taken(write: Write) -> None:
    found = ApiKeys(write(entry()))
    assert authenticate(found, f"bearer  {KEY} ", Scope.GENERATE).id == "team-a"
    with pytest.raises(RequestError, match="no scope 'status'") as caught:
        authenticate(found, f"Bearer {KEY}", Scope.STATUS)
    assert caught.value.kind.status == 403
