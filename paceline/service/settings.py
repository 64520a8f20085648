"""Settings: flags over environment over defaults, validated at start; one class a service."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

import click
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from paceline.addresses import parse_host
from paceline.service import garbage
from paceline.service.service_links import is_service_link


class SettingsError(ValueError):
    """The process cannot start as set; the message says which setting and what to do."""


class MissingSettingError(SettingsError):
    """Settings are required and not given, and nothing else is wrong."""


class ServiceSettings(BaseSettings):
    """Settings of every service. Subclasses set `env_prefix` and add their own fields."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on, IPv4 or IPv6; :: for all interfaces, 0.0.0.0 for all of IPv4.",
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0 serves no metrics.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )
    log_format: Literal["human", "json"] = Field("human", description="Log lines for people or for machines.")
    use_http_proxy: bool = Field(
        False,
        description="Call other services and the trace collector through the proxy that http_proxy, "
        "https_proxy and no_proxy name; false calls them directly.",
    )
    otlp_endpoint: str = Field(
        "",
        description="OTLP collector for traces, host:port or a URL; empty sends them where "
        "OTEL_EXPORTER_OTLP_ENDPOINT says, if it does.",
    )
    grace_seconds: float = Field(
        30.0, ge=0, description="Seconds that running sessions may go on after SIGTERM before they are cut."
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the certificate that this service shows to the others, with its chain."
    )
    tls_key: Path | None = Field(None, description="PEM file of the private key of --tls-cert.")
    tls_ca: Path | None = Field(
        None, description="PEM file of the CAs that must have signed the other services' certificates."
    )

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return parse_host(host)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment without variables of service links."""
        assert isinstance(env_settings, EnvSettingsSource)
        linked = {name.lower() for name in os.environ if is_service_link(name, os.environ)}
        env_settings.env_vars = {
            name: value for name, value in env_settings.env_vars.items() if name.lower() not in linked
        }
        return init_settings, env_settings

    @model_validator(mode="after")
    def _all_of_tls(self) -> Self:
        all_or_none(tls_cert=self.tls_cert, tls_key=self.tls_key, tls_ca=self.tls_ca)
        return self


def all_or_none(**given: object) -> None:
    """Raise `ValueError` unless the settings in `given` are all set, or none of them."""
    missing = [_flag(name) for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        names = ", ".join(_flag(name) for name in given)
        raise ValueError(f"{', '.join(missing)} is missing: give all of {names}, or none for plaintext")


class StoreSettings(ServiceSettings):
    """Settings of the session store, for services that use it."""

    redis_url: SecretStr = Field(
        SecretStr(""),
        description="URL of the session store, as redis://USER:PASSWORD@HOST:PORT/0; empty uses none.",
    )
    session_ttl_seconds: int = Field(
        3600, ge=1, description="Seconds that a session's record is kept after its last token."
    )
    durability: Literal["strict", "relaxed"] = Field(
        "relaxed",
        description="While Redis is away, strict holds tokens back; relaxed streams them, marked.",
    )

    @property
    def strict(self) -> bool:
        """Whether tokens wait until the store has them."""
        return self.durability == "strict"


S = TypeVar("S", bound=ServiceSettings)


def load_settings(settings_type: type[S], **given: Any) -> S:
    """Flags in `given` over environment over defaults. Raises `SettingsError` naming each wrong setting."""
    prefix = str(settings_type.model_config["env_prefix"])
    known = {prefix + name.upper() for name in settings_type.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(prefix) and name not in known and not is_service_link(name, os.environ)
    )
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}; the settings of this service are "
            f"{', '.join(sorted(known))}"
        )
    return read_settings(settings_type, **given)


def read_settings(settings_type: type[S], **given: Any) -> S:
    """As `load_settings`, for a type that has only some of a service's settings: others are not unknown."""
    prefix = str(settings_type.model_config["env_prefix"])
    try:
        return settings_type(**given)
    except ValidationError as error:
        fields = settings_type.model_fields
        secret = {name for name, field in fields.items() if field.annotation is SecretStr}
        problems = error.errors()
        kind = MissingSettingError if all(each["type"] == "missing" for each in problems) else SettingsError
        # Not the error's own text: it quotes the values given, secrets too.
        raise kind("\n".join(_explain(problem, prefix, secret) for problem in problems)) from None


def _explain(problem: Any, prefix: str, secret: Collection[str]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{name} is required: give {_flag(name)} or {prefix}{name.upper()}"
    given = "" if name in secret else f", got {problem['input']!r}"
    return f"{_flag(name)} ({prefix}{name.upper()}): {message}{given}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class ServiceCommand(click.Command):
    """A command that starts a service by settings of `settings_type`, or runs one of those `beside` it."""

    def __init__(
        self, settings_type: type[ServiceSettings], beside: Sequence[click.Command] = (), **options: Any
    ) -> None:
        lines = [f"  {command.name}  {command.get_short_help_str(100)}" for command in beside]
        super().__init__(epilog="\n".join(("\b", "Commands:", *lines)) if lines else None, **options)
        self.settings_type = settings_type
        self._beside = {command.name: command for command in beside}

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run with `args`, by default those of the process."""
        words = list(sys.argv[1:] if args is None else args)
        other = self._beside.get(words[0]) if words else None
        if other is None:
            return super().main(words, *rest, **extra)
        extra["prog_name"] = f"{extra.get('prog_name') or self.name} {other.name}"
        return other.main(words[1:], *rest, **extra)


def service_command(
    name: str,
    settings_type: type[S],
    load: Callable[[S], Callable[[S], None]],
    *,
    help: str,
    beside: Sequence[click.Command] = (),
) -> ServiceCommand:
    """The command that starts a service: one flag per field of its settings.

    `load` imports what serving takes, which `--help` and wrong settings do without, and returns what serves.
    `beside` are commands that come in the place of flags.
    """
    prefix = str(settings_type.model_config["env_prefix"])

    def callback(**flags: Any) -> None:
        given = {key: value for key, value in flags.items() if value is not None}
        try:
            settings = load_settings(settings_type, **given)
            # What is imported is never garbage.
            garbage.rest()
            run = load(settings)
            garbage.spare()
            run(settings)
        except SettingsError as error:
            click.echo(f"{name}: {error}", err=True)
            sys.exit(2)

    options = [_option(key, field, prefix) for key, field in settings_type.model_fields.items()]
    return ServiceCommand(
        settings_type,
        beside,
        name=name,
        params=list(options),
        callback=callback,
        help=help,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _shown(value: object) -> str:
    """A default as a person would write it."""
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(name: str, field: FieldInfo, prefix: str) -> click.Option:
    description = (field.description or "").rstrip(".")
    annotation, value = field.annotation, field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    default = "required" if value is PydanticUndefined else f"default: {_shown(value)}"
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return click.Option(
        [_flag(name)],
        type=click.Choice([str(choice) for choice in choices]) if choices else str,
        default=None,
        help=f"{description}.  [{prefix}{name.upper()}; {default}]",
        metavar=None if choices else getattr(annotation, "__name__", "TEXT").upper(),
    )
