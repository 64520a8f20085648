"""`paceline key create`: a key for its holder, and an entry that a gateway takes."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from gateway.keys import ApiKeys
from paceline.api_keys import Scope
from paceline.cli.app import app


def test_a_made_key_opens_a_gateway_with_the_made_entry(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["key", "create", "team-a", "--scope", "generate", "--scope", "status"])
    assert made.exit_code == 0
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [json.loads(made.stdout)]}))
    caller = ApiKeys(path).caller(key)
    assert caller is not None
    assert (caller.id, set(caller.scopes)) == ("team-a", {Scope.GENERATE, Scope.STATUS})


def test_a_scope_that_does_not_exist_makes_no_key() -> None:
    made = CliRunner().invoke(app, ["key", "create", "team-a", "--scope", "everything"])
    assert made.exit_code != 0
    assert "pk-" not in made.stdout + made.stderr
