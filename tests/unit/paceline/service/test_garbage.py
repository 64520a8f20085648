"""A service collects garbage, though not while it is imported, and not among what it was imported with."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner
from pydantic_settings import SettingsConfigDict

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

    def note(_: Settings) -> None:
        seen.append((gc.isenabled(), gc.get_freeze_count()))

    def load(settings: Settings) -> Callable[[Settings], None]:
        note(settings)
        return note

    command = service_command("s", Settings, load, help="")
    gc.unfreeze()
    gc.collect()
    imported = len(gc.get_objects())
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    (collects_while_importing, _), (collects_while_serving, spared) = seen
    assert not collects_while_importing
    assert collects_while_serving
    assert spared >= imported
