"""A service collects garbage, though not while it is imported, and not among what it was imported with."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from pydantic_settings import SettingsConfigDict

from paceline.service import garbage
from paceline.service.settings import ServiceSettings, service_command


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="OF_A_TEST_")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_a_service_collects_garbage_but_never_looks_at_what_it_was_imported_with() -> None:
    seen: list[tuple[bool, int]] = []
    command = service_command(
        "s", Settings, lambda _: seen.append((gc.isenabled(), gc.get_freeze_count())), help=""
    )
    gc.unfreeze()
    imported = len(gc.get_objects())
    garbage.rest()
    assert not gc.isenabled()
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    [(collecting, spared)] = seen
    assert collecting
    assert spared >= imported
