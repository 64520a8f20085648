"""Every drafter setting: name, type, default, meaning."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from paceline.service.settings import ServiceSettings


class DrafterSettings(ServiceSettings):
    """Settings of one drafter process; `PACELINE_DRAFTER_*` or flags."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_DRAFTER_")

    port: int = Field(9100, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    drafter_id: str = Field(
        "",
        max_length=128,
        description="stable name in logs and metrics; empty takes host name and process id",
    )
    method: str = Field("lookup+recycling", description="drafting sources joined by +: lookup, recycling")
    tables: Path | None = Field(
        None,
        description="folder of tables to start with, one file per vocabulary (`paceline bench tables` writes "
        "them); those that come with Paceline when not set",
    )
    tenants: int = Field(
        64,
        ge=0,
        description="tenants (holders of API keys) whose learned tables are kept while they have no session; "
        "the one that was away longest goes first",
    )
    tree_nodes: int = Field(
        31, ge=1, le=1024, description="most nodes of a tree; with the root they make the verifier's rows"
    )
    tree_depth: int = Field(16, ge=1, le=256, description="deepest level of a tree")
    max_sessions: int = Field(1024, ge=1, description="sessions drafted for at once; more are refused")
    max_verifiers: int = Field(64, ge=1, description="verifiers connected at once; more are refused")
    rejoin_seconds: float = Field(
        30.0, ge=0, description="how long sessions of a verifier that went away are kept for its return"
    )
    idle_seconds: float = Field(
        600.0, gt=0, description="a session without a verdict for so long, or an idle stream, is dropped"
    )
