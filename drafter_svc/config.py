"""Every drafter setting: name, type, default, meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from paceline.pools import DEFAULT_POOL, parse_pool
from paceline.service.settings import ServiceSettings


class DrafterSettings(ServiceSettings):
    """Settings of one drafter process; `PACELINE_DRAFTER_*` or flags."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_DRAFTER_")

    port: int = Field(9100, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    drafter_id: str = Field(
        "",
        max_length=128,
        description="Stable name in logs and metrics; empty takes host name and process id.",
    )
    pool: Annotated[str, AfterValidator(parse_pool)] = Field(
        DEFAULT_POOL, description="Name of the drafters that are like this one and are scaled with it."
    )
    method: str = Field(
        "lookup+recycling",
        description="Ways of drafting, joined by +: lookup and recycling draft from the text itself, others "
        "with models. `paceline drafter methods` lists those that are installed.",
    )
    draft_ahead: bool = Field(
        False,
        description="While a tree is verified, send a larger one on the same text: what of it fits the "
        "verdict can be verified at once.",
    )
    device: str = Field(
        "auto",
        description="Where methods that compute do so: auto, cpu, cuda or cuda:N; auto takes a GPU where "
        "there is one. A process takes one GPU; several GPUs take several drafters.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Number type in which methods compute; auto takes that of their weights."
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of methods that compute; 0 takes as many as affinity mask and cgroup allow "
        "cores.",
    )
    model: str = Field(
        "",
        description="Folder or Hugging Face id of the target model, for methods that use parts of it, such "
        "as its embedding.",
    )
    draft_model: str = Field(
        "", description="Folder or Hugging Face id of the draft model, which has the target's vocabulary."
    )
    heads: Path | None = Field(
        None,
        description="Folder of trained heads (*.safetensors, as `paceline train` writes them), beside those "
        "that come with Paceline.",
    )
    memory_bytes: int = Field(
        2 << 30,
        ge=1 << 20,
        description="Bytes of keys, values and hidden states that each method keeps of sessions. A session "
        "that finds no room is drafted for from its text.",
    )
    tables: Path | None = Field(
        None,
        description="Folder of tables to start with, one file per vocabulary (`paceline bench tables` writes "
        "them). Not set: those that come with Paceline.",
    )
    tenants: int = Field(
        64,
        ge=0,
        description="Tenants (holders of API keys) whose learned tables are kept while they have no session; "
        "the one that was away longest goes first.",
    )
    tree_nodes: int = Field(
        31,
        ge=1,
        le=1024,
        description="Most nodes of a tree. Nodes and root are the rows that a verifier computes.",
    )
    tree_depth: int = Field(16, ge=1, le=256, description="Most levels of a tree.")
    max_sessions: int = Field(1024, ge=1, description="Most sessions drafted for at once; more are refused.")
    max_verifiers: int = Field(64, ge=1, description="Most verifiers connected at once; more are refused.")
    rejoin_seconds: float = Field(
        30.0, ge=0, description="Seconds that sessions of a verifier that went away are kept for its return."
    )
    idle_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds after which a session without a verdict, or an idle stream, is dropped.",
    )
