"""Settings of scaling: when there should be more or fewer pods."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from gateway.scaling.policy import Policy
from paceline.service.settings import StoreSettings


class ScalingSettings(StoreSettings):
    """The part of the gateway's settings that says how many pods it recommends."""

    scaler_port: int = Field(
        0, ge=0, le=65535, description="Port of KEDA's external scaler protocol (gRPC); 0 serves none."
    )
    scale_out_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Seconds of load whose mean decides whether more pods are needed.",
    )
    scale_in_seconds: float = Field(
        300.0,
        gt=0,
        le=86400,
        description="Seconds of load whose 95th percentile the remaining pods must bear; nothing is scaled "
        "in sooner after a start or a scale-out.",
    )
    scale_tolerance: float = Field(
        0.1, ge=0, le=1, description="Share by which the load may differ from what the pods are for."
    )
    verifier_target_load: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Rows that a verifier should compute at a time, as a share of those that it computes in "
        "twice the time of one.",
    )
    verifier_target_kv: float = Field(
        0.8, gt=0, le=1, description="Share of a verifier's KV that sessions should hold."
    )
    drafter_target_busy: float = Field(
        0.6, gt=0, le=1, description="Share of its time that a drafter should work."
    )
    starvation_limit: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of steps that wanted a tree and had none in time, above which busy drafters are "
        "too few.",
    )
    drafter_retry_seconds: float = Field(
        1800.0,
        gt=0,
        description="Seconds after which one drafter is tried again where drafts were not worth any.",
    )

    @model_validator(mode="after")
    def _in_not_before_out(self) -> Self:
        if self.scale_in_seconds < self.scale_out_seconds:
            raise ValueError(
                "--scale-in-seconds is less than --scale-out-seconds: pods would be taken away by less load "
                "than they were called for; give at least as many seconds"
            )
        return self

    @property
    def scaling(self) -> Policy:
        """How recommendations are made."""
        return Policy(
            out_seconds=self.scale_out_seconds,
            in_seconds=self.scale_in_seconds,
            tolerance=self.scale_tolerance,
            verifier_load=self.verifier_target_load,
            verifier_kv=self.verifier_target_kv,
            drafter_busy=self.drafter_target_busy,
            starvation=self.starvation_limit,
            retry_seconds=self.drafter_retry_seconds,
        )
