"""The gateway's settings: name, type, default, meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.limits import UsageLimits
from gateway.scaling.config import ScalingSettings
from paceline.addresses import parse_addresses
from paceline.service.settings import all_or_none

DiscoveryKind = Literal["static", "dns", "kubernetes"]
ToolParserName = Literal["auto", "hermes", "llama3", "mistral", "json"]
ReasoningParserName = Literal["auto", "none", "think", "magistral"]
SpecialTokensInText = Literal["plain-completions", "everywhere", "nowhere"]


class GatewaySettings(ScalingSettings):
    """Settings of one gateway process; `PACELINE_GATEWAY_*` or flags."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_GATEWAY_")

    http_port: int = Field(
        8000, ge=0, le=65535, description="Port of the OpenAI-compatible HTTP API; 0 takes a free one."
    )
    port: int = Field(8001, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    discovery: DiscoveryKind = Field(
        "static",
        description="How pods are found: static (at --verifiers and --drafters), dns (every address that "
        "those names have, looked up again and again) or kubernetes (EndpointSlices).",
    )
    verifiers: str = Field(
        "", description="Verifiers as host:port, separated by commas; with --discovery dns names of them."
    )
    drafters: str = Field(
        "", description="Drafters as host:port, separated by commas; without any, decoding is plain."
    )
    dns_seconds: float = Field(
        5.0, ge=0.1, le=300, description="Seconds between two look-ups, with --discovery dns."
    )
    kubernetes_namespace: str = Field(
        "",
        description="With --discovery kubernetes: namespace of the pods; empty takes the gateway's own.",
    )
    kubernetes_selector: str = Field(
        "",
        description="With --discovery kubernetes: labels that the Services of this fleet have, as in kubectl "
        "-l; empty takes every fleet of the namespace.",
    )
    deletion_cost_seconds: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="With --discovery kubernetes: seconds between two looks at how busy pods are, so that "
        "idle ones go first when replicas are removed; 0 tells Kubernetes nothing.",
    )
    kubeconfig: Path | None = Field(
        None,
        description="With --discovery kubernetes outside a cluster: file that says where the API server is; "
        "none uses the service account of the gateway's pod.",
    )
    public_tls_cert: Path | None = Field(
        None, description="PEM file of the certificate that clients see over HTTP and gRPC, with its chain."
    )
    public_tls_key: Path | None = Field(None, description="PEM file of the private key of --public-tls-cert.")
    model: str = Field(description="Folder or Hugging Face id that holds the model's tokenizer.")
    model_name: str = Field("", description="Model name that clients ask for; empty takes the model's own.")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the tokenizer. Its author then controls this process.",
    )
    special_tokens_in_text: SpecialTokensInText = Field(
        "plain-completions",
        description="Where special tokens that a user writes count as tokens, not as text: in plain "
        "completions only, everywhere (a message can then end itself and speak for others), or nowhere.",
    )
    tool_parser: ToolParserName = Field(
        "auto",
        description="Form in which the model writes calls of tools: hermes (Qwen too), llama3, mistral or "
        "json; auto takes it from the chat template.",
    )
    reasoning_parser: ReasoningParserName = Field(
        "auto",
        description="Marks around the model's reasoning, which is told apart from its answer: think "
        "(<think>), magistral ([THINK]) or none; auto takes them from the chat template and the vocabulary.",
    )
    verifier_silence_seconds: float = Field(
        5.0,
        ge=3,
        le=600,
        description="Seconds without news of a session after which its verifier counts as hung and the "
        "session moves. Set more than the longest step takes.",
    )
    max_body_bytes: int = Field(
        4 << 20, ge=1024, description="Largest HTTP body or gRPC message; larger ones are refused."
    )
    max_sessions: int = Field(
        1024, ge=1, description="Sessions that this gateway follows at once; more wait in line."
    )
    max_waiting: int = Field(
        2048,
        ge=2,
        description="Requests that may wait in line for a place; more are refused with 429. One key alone "
        "may take half of the line, two a third each, and so on.",
    )
    api_keys_file: str = Field(
        "",
        description="JSON file of the API keys' hashes, scopes and limits, read anew when it changes "
        "(`paceline key create` prints entries); empty serves everybody.",
    )
    share_learning: bool = Field(
        False,
        description="Let what drafters learn from one key's sessions help every key's. That is faster, but a "
        "receipt then tells whether somebody asked the same before. Without --api-keys-file all share.",
    )
    concurrent_sessions: int = Field(
        0, ge=0, description="Sessions at once, over all gateways and keys; more wait. 0 sets no limit."
    )
    queued_requests: int = Field(
        256, ge=0, description="Requests that may wait for --concurrent-sessions; more are refused."
    )
    tokens_per_minute: int = Field(
        0, ge=0, description="Prompt and answer tokens a minute, over all gateways and keys; 0 sets no limit."
    )
    queue_seconds: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds that a request may wait for its limits, or for a place at a verifier.",
    )
    client_stall_seconds: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="Seconds after which a client that reads nothing of its stream is disconnected.",
    )
    keep_alive_seconds: float = Field(
        90.0,
        ge=1,
        le=3600,
        description="Seconds that an HTTP connection without a request stays open. Set more than a proxy in "
        "front of the gateway does.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages that may use the HTTP API, separated by commas; * allows all, "
        "empty none.",
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="What becomes of a request over HTTP with a field that is not known: refuse it by the "
        "field's name, or ignore the field and name it in the response's x-paceline-ignored-fields.",
    )
    request_seconds: float = Field(
        0,
        ge=0,
        description="Most seconds of an HTTP request, which may ask for less; 0 sets no bound.",
    )
    poll_seconds: float = Field(
        1.0, gt=0, le=60, description="Seconds between two questions to each pod for its status."
    )

    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds after SIGTERM in which new sessions are still taken while /readyz says 503, so "
        "that a load balancer has time to notice.",
    )

    @field_validator("verifiers", "drafters")
    @classmethod
    def _are_addresses(cls, text: str) -> str:
        return ",".join(parse_addresses(text))

    @model_validator(mode="after")
    def _pods_are_found_in_one_way(self) -> Self:
        if self.discovery == "kubernetes":
            if self.verifiers or self.drafters:
                raise ValueError("--discovery kubernetes finds all pods: give no --verifiers, no --drafters")
        elif not self.verifiers:
            raise ValueError("--verifiers names no address; give host:port, several separated by commas")
        return self

    @model_validator(mode="after")
    def _all_of_public_tls(self) -> Self:
        all_or_none(public_tls_cert=self.public_tls_cert, public_tls_key=self.public_tls_key)
        return self

    @property
    def limits(self) -> UsageLimits:
        """Limits on all requests together."""
        return UsageLimits(
            self.concurrent_sessions or None, self.queued_requests, self.tokens_per_minute or None
        )

    @property
    def served_model_name(self) -> str:
        """Name under which clients ask for the model."""
        return self.model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

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
