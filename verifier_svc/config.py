"""Every verifier setting: name, type, default, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from paceline.features import MAX_LAYERS
from paceline.net.rpc import MAX_MESSAGE_BYTES
from paceline.pools import DEFAULT_POOL, parse_pool
from paceline.service.settings import StoreSettings

# Most bytes on the wire of a token id, a node (token, parent, log_prob), a session's key with its frame.
_ID_BYTES = 5
_NODE_BYTES = 16
_KEY_BYTES = 256
# Least limit of a message: one that is a little too large is to be told which bound it breaks.
_LEAST_BYTES = 1 << 20


def _layers(text: str) -> str:
    """Layers as `--keep-states` names them; the model says whether it has them. Raises `ValueError`."""
    parts = [part.strip() for part in text.split(",")]
    if text.strip() in ("", "eagle"):
        return text.strip()
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError("give numbers of layers with commas, as in 2,15,27, or eagle")
    if len(parts) > MAX_LAYERS:
        raise ValueError(f"at most {MAX_LAYERS} layers can be kept")
    return ",".join(parts)


class VerifierSettings(StoreSettings):
    """Settings of one verifier process."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_VERIFIER_")

    port: int = Field(9000, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    model: str = Field(description="Folder or Hugging Face id of the target model.")
    model_name: str = Field("", description="Model name that clients ask for; empty takes the model's own.")
    pool: Annotated[str, AfterValidator(parse_pool)] = Field(
        DEFAULT_POOL, description="Name of the verifiers that are like this one and are scaled with it."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Its author then controls this process."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Number type of the weights; auto keeps the checkpoint's own."
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the forward; 0 takes as many as affinity mask and cgroup allow cores.",
    )
    store_patience_seconds: float = Field(
        20.0,
        ge=0,
        le=3600,
        description="Seconds that strict durability waits for Redis before it ends sessions.",
    )
    max_sessions: int = Field(64, ge=1, le=4096, description="Most sessions open at once; more are refused.")
    kv_tokens: int = Field(
        0,
        ge=0,
        description="KV capacity in tokens; 0 sizes it from the memory that is free at the start.",
    )
    prefix_cache: bool = Field(True, description="Keep the KV of past texts for sessions that begin alike.")
    keep_states: Annotated[str, AfterValidator(_layers)] = Field(
        "",
        description="Layers whose hidden states are kept beside the KV, for drafters that read them: numbers "
        "with commas, 0 (the embeddings) to the model's last, or eagle for the three that EAGLE-3 reads; "
        "empty keeps none.",
    )
    prefill_rows: int = Field(256, ge=128, le=8192, description="Most prompt rows in one step.")
    draft_rows: int = Field(
        256,
        ge=0,
        le=256,
        description="Most rows of roots and trees in one step; below that, measured costs decide.",
    )
    max_tree_nodes: int = Field(
        64, ge=1, le=1024, description="Most nodes of a tree; larger ones are refused."
    )
    max_tree_depth: int = Field(
        32, ge=1, le=256, description="Most levels of a tree; deeper ones are refused."
    )
    max_draft_wait_ms: float = Field(
        20.0,
        ge=0,
        le=1000,
        description="Longest wait of a step for trees under way, where it pays; 0 never waits.",
    )
    divergence_interval: int = Field(
        512,
        ge=0,
        description="Where the engine is not exact: draw one in so many steps with accepted drafts again, as "
        "plain decoding would, to count divergences. 0 checks none.",
    )

    def message_bytes(self, max_context: int) -> int:
        """Bytes of the largest honest message: a session's ids, or a tree for each session."""
        ids = 2 * max_context * _ID_BYTES
        trees = self.max_sessions * (self.max_tree_nodes * _NODE_BYTES + _KEY_BYTES)
        return min(max(ids, trees, _LEAST_BYTES), MAX_MESSAGE_BYTES)
