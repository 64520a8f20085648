"""A service collects garbage, though not while it is imported, and not among what it was imported with."""

from __future__ import annotations

import asyncio
import gc
import platform
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic_settings import SettingsConfigDict

from paceline.net import rpc
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide for themselves")
def test_a_service_gives_back_what_was_freed_while_it_loaded() -> None:
    held: list[int] = []

    async def serve(_: asyncio.Event) -> None:
        held.append(resident_bytes())

    loaded = [random.randbytes(4096) for _ in range(1 << 14)]
    # What stays lies between what is freed: glibc gives none of it back by itself.
    stays = loaded[::64]
    loaded.clear()
    before = resident_bytes()
    rpc.run_service(serve)
    assert stays
    assert held[0] < before - (32 << 20)


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
