"""The table of docs/models.md is what the engine does now, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import models
from bench.families import FAMILIES, Family
from paceline.engine.model import Decoder

DOCS = Path(__file__).parents[3] / "docs" / "models.md"


def _documented() -> dict[str, str]:
    """Every row of the table, by its family."""
    _, table = DOCS.read_text().split(models.markdown(models.HEADER) + "\n")
    lines = table.split("\n\n")[0].splitlines()[1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


DOCUMENTED = _documented()


def test_the_table_names_every_family() -> None:
    assert list(DOCUMENTED) == list(FAMILIES)


@pytest.mark.parametrize("family", DOCUMENTED)
def test_a_family_is_served_as_its_row_says(family: str, tmp_path: Path) -> None:
    with models.tiny_and_quiet():
        row = models.run(family, tmp_path)
    assert row.ok
    assert models.markdown(row.cells()) == DOCUMENTED[family]


def test_a_wrong_text_is_told_and_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check does not see is seen here: an accepted path that stays where it was drafted."""
    load = Decoder.load

    def loaded(*told: Any, **options: Any) -> Decoder:
        decoder = load(*told, **options)
        monkeypatch.setattr("paceline.engine.kv.KVPool.move", lambda *_: None)
        return decoder

    monkeypatch.setattr(Decoder, "load", loaded)
    result = CliRunner().invoke(models.command, ["--only", "llama"])
    assert "| WRONG drafted |" in result.output
    assert result.exit_code == 1


def test_what_is_raised_is_told_and_the_next_family_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "bloom", Family("Bloom", "", {"n_head": 3}))
    result = CliRunner().invoke(models.command, ["--only", "bloom", "--only", "llama"])
    assert "| FAULT: " in result.output
    assert "| same | yes |" in result.output
    assert result.exit_code == 1
