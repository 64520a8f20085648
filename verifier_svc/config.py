"""Every verifier setting: name, type, default, meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from paceline.net.rpc import MAX_MESSAGE_BYTES
from paceline.service.settings import StoreSettings

# On the wire, at the most: a token id; a tree's node (token, parent, log_prob); a session's key and frame.
_ID_BYTES = 5
_NODE_BYTES = 16
_KEY_BYTES = 256
# A message somewhat over a bound of its own is to be told which one.
_LEAST_BYTES = 1 << 20


class VerifierSettings(StoreSettings):
    """Settings of one verifier process."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_VERIFIER_")

    port: int = Field(9000, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    model: str = Field(description="Folder or Hugging Face id of the target model.")
    model_name: str = Field("", description="Name clients ask for; the model's own name when empty.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model; its author owns this process."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="What the weights are computed in; auto keeps the checkpoint's own."
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the forward; 0 takes the cores that affinity and cgroup allow.",
    )
    store_patience_seconds: float = Field(
        20.0,
        ge=0,
        le=3600,
        description="How long strict durability waits for Redis before it gives up sessions.",
    )
    max_sessions: int = Field(64, ge=1, le=4096, description="Sessions open at the most; more are refused.")
    kv_tokens: int = Field(
        0,
        ge=0,
        description="KV capacity in tokens; 0 sizes it from what is free at start (cgroup limits count).",
    )
    prefix_cache: bool = Field(True, description="Keep the KV of past texts for those that begin alike.")
    prefill_rows: int = Field(256, ge=128, le=8192, description="Prompt rows in one step at the most.")
    draft_rows: int = Field(
        256,
        ge=0,
        le=256,
        description="Rows of all sessions' trees and roots in one step at the most; costs decide below.",
    )
    max_tree_nodes: int = Field(64, ge=1, le=1024, description="A larger tree is refused.")
    max_tree_depth: int = Field(32, ge=1, le=256, description="A deeper tree is refused.")
    max_draft_wait_ms: float = Field(
        20.0,
        ge=0,
        le=1000,
        description="Longest wait for trees that are on their way, where it pays; 0 never waits.",
    )
    divergence_interval: int = Field(
        512,
        ge=0,
        description="Of so many steps with accepted drafts one is drawn again as plain decoding would, where "
        "the engine is not exact, to count divergences; 0 checks none.",
    )

    def message_bytes(self, max_context: int) -> int:
        """The largest message that an honest peer sends: a session's ids, or a tree of every session."""
        ids = 2 * max_context * _ID_BYTES
        trees = self.max_sessions * (self.max_tree_nodes * _NODE_BYTES + _KEY_BYTES)
        return min(max(ids, trees, _LEAST_BYTES), MAX_MESSAGE_BYTES)
