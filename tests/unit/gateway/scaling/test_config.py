"""Settings of scaling are checked at the start, with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import GatewaySettings
from gateway.scaling.policy import Policy
from paceline.service.settings import SettingsError, load_settings

REQUIRED = {"model": "m", "verifiers": "127.0.0.1:9000"}


def test_defaults_are_the_policys() -> None:
    assert load_settings(GatewaySettings, **REQUIRED).scaling == Policy()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"scale_in_seconds": 10, "scale_out_seconds": 60},
            "--scale-in-seconds is less than --scale-out-seconds: .* give at least as many seconds",
        ),
        ({"verifier_target_load": 0}, r"--verifier-target-load \(PACELINE_GATEWAY_VERIFIER_TARGET_LOAD\)"),
        ({"drafter_target_busy": 1.5}, "--drafter-target-busy"),
        ({"starvation_limit": 0}, "--starvation-limit"),
        ({"scaler_port": 70000}, "--scaler-port"),
    ],
    ids=["windows", "load", "busy", "starvation", "port"],
)
def test_a_wrong_setting_ends_the_start(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(GatewaySettings, **REQUIRED, **given)
