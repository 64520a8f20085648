"""Every gateway setting: name, type, default, meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.limits import Limits
from paceline.addresses import parse_addresses
from paceline.service.settings import StoreSettings, all_or_none

SpecialTokensInText = Literal["plain-completions", "everywhere", "nowhere"]


class GatewaySettings(StoreSettings):
    """Settings of one gateway process; `PACELINE_GATEWAY_*` or flags."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_GATEWAY_")

    http_port: int = Field(
        8000, ge=0, le=65535, description="Port of the OpenAI-compatible HTTP API; 0 takes a free one."
    )
    port: int = Field(8001, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    verifiers: str = Field(description="Verifiers as host:port, separated by commas.")
    drafters: str = Field("", description="Drafters as host:port, separated by commas; none decodes plainly.")
    public_tls_cert: Path | None = Field(
        None, description="PEM file of the certificate shown to clients, HTTP and gRPC, with its chain."
    )
    public_tls_key: Path | None = Field(None, description="PEM file of the private key of public_tls_cert.")
    model: str = Field(description="Folder or Hugging Face id that holds the model's tokenizer.")
    model_name: str = Field("", description="Name clients ask for; the model's own name when empty.")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the tokenizer; its author owns this process.",
    )
    special_tokens_in_text: SpecialTokensInText = Field(
        "plain-completions",
        description="Where special tokens that users write are these tokens and not text: plain-completions, "
        "everywhere (whoever writes a message can then end it and speak for others), nowhere.",
    )
    verifier_silence_seconds: float = Field(
        5.0,
        ge=3,
        le=600,
        description="A verifier that says nothing of a session for so long is taken for hung, and its "
        "session moves; more than its longest step.",
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="A larger body or gRPC message is refused.")
    max_sessions: int = Field(1024, ge=1, description="Sessions followed at once; more wait in line.")
    max_waiting: int = Field(
        2048,
        ge=2,
        description="Requests that have no place for their session yet; more are refused with 429. A key "
        "that is alone may take half of it, two a third each, and so on.",
    )
    api_keys_file: str = Field(
        "",
        description="JSON file of the API keys' hashes, scopes and limits, read anew when it changes "
        "(`paceline key create` makes entries); empty serves anybody.",
    )
    share_learning: bool = Field(
        False,
        description="What drafters learn from one key's sessions helps all keys': faster, but a receipt then "
        "tells whether somebody has asked the same before. Without api_keys_file it is shared by all.",
    )
    concurrent_sessions: int = Field(
        0, ge=0, description="Sessions of all gateways and keys at once; more wait. 0 sets no limit."
    )
    queued_requests: int = Field(
        256, ge=0, description="Requests that may wait for one of concurrent_sessions; more are refused."
    )
    tokens_per_minute: int = Field(
        0, ge=0, description="Prompt and answer tokens of all gateways and keys; 0 sets no limit."
    )
    queue_seconds: float = Field(
        10.0,
        ge=0,
        le=600,
        description="How long a request waits for a session's place: its key's, everybody's, a verifier's.",
    )
    client_stall_seconds: float = Field(
        60.0, ge=1, le=3600, description="A client that takes nothing of its stream for so long is let go."
    )
    keep_alive_seconds: float = Field(
        90.0,
        ge=1,
        le=3600,
        description="How long a connection without a request stays open; longer than a proxy in front keeps "
        "its own.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages that may use the HTTP API from a browser, separated by commas; * "
        "is all of them, empty none.",
    )
    request_seconds: float = Field(
        0, ge=0, description="Longest time for a request over HTTP, which may ask for less; 0 sets none."
    )
    poll_seconds: float = Field(1.0, gt=0, le=60, description="How often each pod is asked for its status.")

    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=300,
        description="How long after SIGTERM, readiness off, new sessions are still taken: as long as whoever "
        "balances load may need to notice.",
    )

    @field_validator("verifiers", "drafters")
    @classmethod
    def _are_addresses(cls, text: str) -> str:
        return ",".join(parse_addresses(text))

    @model_validator(mode="after")
    def _all_of_public_tls(self) -> Self:
        all_or_none(public_tls_cert=self.public_tls_cert, public_tls_key=self.public_tls_key)
        return self

    @property
    def limits(self) -> Limits:
        """Those of everybody together."""
        return Limits(self.concurrent_sessions or None, self.queued_requests, self.tokens_per_minute or None)

    @property
    def cors_allowed(self) -> tuple[str, ...]:
        """`cors_origins`, split."""
        return tuple(part.strip() for part in self.cors_origins.split(",") if part.strip())

    @property
    def verifier_addresses(self) -> tuple[str, ...]:
        """`verifiers`, split."""
        return parse_addresses(self.verifiers)

    @property
    def drafter_addresses(self) -> tuple[str, ...]:
        """`drafters`, split."""
        return parse_addresses(self.drafters)
