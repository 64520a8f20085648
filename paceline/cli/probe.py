"""What `paceline health` asks: where a service listens by its environment, and whether it serves there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from paceline.addresses import join_address, reachable
from paceline.net.readiness import grpc_serving, http_ok
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service.settings import ServiceSettings, read_settings


# Of a service's settings those that say how it is reached, with the service's own defaults.
class _Gateway(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PACELINE_GATEWAY_")

    http_port: int = Field(8000, ge=0, le=65535)
    public_tls_cert: Path | None = None


class _Verifier(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PACELINE_VERIFIER_")

    port: int = Field(9000, ge=0, le=65535)


class _Drafter(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PACELINE_DRAFTER_")

    port: int = Field(9100, ge=0, le=65535)


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """A GET that answers 200 where a gateway serves."""

    address: str

    async def serves(self) -> bool:
        """Ask once."""
        # The certificate is for the names that clients use; this is the loopback interface, or our own host.
        return await http_ok(self.address, verify=False)


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """Standard gRPC health of a verifier or drafter, with the certificate that it shows itself."""

    address: str
    role: Role
    identity: Identity | None

    async def serves(self) -> bool:
        """Ask once."""
        return await grpc_serving(self.address, self.role, self.identity)


Probe = HttpProbe | GrpcProbe


def probe(role: Role, *, ready: bool) -> Probe:
    """The probe of a service that has this process's environment.

    `ready`: of a gateway, whether it can serve requests; the others always answer that.
    Raises `SettingsError`.
    """
    if role is Role.GATEWAY:
        gateway = read_settings(_Gateway)
        scheme = "http" if gateway.public_tls_cert is None else "https"
        where = join_address(reachable(gateway.host), gateway.http_port)
        return HttpProbe(f"{scheme}://{where}/{'readyz' if ready else 'healthz'}")
    settings = read_settings(_Verifier) if role is Role.VERIFIER else read_settings(_Drafter)
    address = join_address(reachable(settings.host), settings.port)
    return GrpcProbe(address, role, Identity.of_service(settings, role))
