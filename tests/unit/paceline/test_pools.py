"""Names of pools go into the names of Kubernetes objects."""

from __future__ import annotations

import pytest

from drafter_svc.config import DrafterSettings
from paceline.pools import PoolNameError, parse_pool
from paceline.service.settings import SettingsError, load_settings


@pytest.mark.parametrize("name", ["default", "a", "gpu-large", "7b", "x" * 63])
def test_a_dns_label_is_a_pools_name(name: str) -> None:
    assert parse_pool(name) == name


@pytest.mark.parametrize("name", ["", "GPU", "-a", "a-", "a.b", "a_b", "x" * 64, "a\n", "ä"])
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(PoolNameError, match="lower-case letters, digits and hyphens"):
        parse_pool(name)


def test_a_service_with_a_wrong_pool_says_so_at_the_start() -> None:
    assert load_settings(DrafterSettings).pool == "default"
    with pytest.raises(SettingsError, match=r"--pool \(PACELINE_DRAFTER_POOL\): a pool's name is"):
        load_settings(DrafterSettings, pool="Large GPUs")
