"""A fleet that speaks TLS everywhere: services show one another certificates, clients are shown one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from paceline.net.roles import Role
from tests.certificates import DAY, LOCAL, Authority, Issued, Secret
from tests.pods import Gateway, Pods


class SecurePods(Pods):
    """See `Pods`. A role's pods share their secret."""

    def __init__(self, folder: Path, model: Path, redis_url: str, **options: Any) -> None:
        self.authority = Authority()
        self.secrets = {role: Secret(folder / role, self.issue(role)) for role in Role}
        # Of another CA: what clients trust opens nothing between services.
        self.public_authority = Authority()
        self.public = Secret(folder / "public", self.public_authority.issue(*LOCAL))
        super().__init__(folder, model, redis_url, **options)

    def issue(self, role: Role, *, ends_in: timedelta = DAY) -> Issued:
        """A new certificate for a role."""
        return self.authority.issue(role.dns_name, ends_in=ends_in)

    @property
    def gateway(self) -> Gateway:
        """Where clients go, and what they trust."""
        return self.gateways["gateway"]

    def _start(self, name: str, module: str, *flags: str, ranks: int = 1) -> None:
        role = self._role(name)
        public = self.public.flags("public-tls", ca=False) if role is Role.GATEWAY else ()
        super()._start(name, module, *flags, *self.secrets[role].flags(), *public, ranks=ranks)

    def _channel(self, address: str) -> grpc.Channel:
        return dial(address, self.issue(Role.GATEWAY), self._role(address))

    def _role(self, name: str) -> Role:
        if name in self.gateways:
            return Role.GATEWAY
        return Role.VERIFIER if name in self.verifiers else Role.DRAFTER

    def _gateway(self, http: str, address: str) -> Gateway:
        return replace(
            super()._gateway(http.replace("http:", "https:"), address), ca=self.public_authority.pem
        )


def dial(address: str, shown: Issued | None, server: Role, *, trusted: bytes | None = None) -> grpc.Channel:
    """A channel as a service makes it, showing any certificate; `trusted`: CAs, its own by default."""
    if shown is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(trusted or shown.ca, shown.key, shown.cert)
    return grpc.secure_channel(
        address, credentials, options=[("grpc.ssl_target_name_override", server.dns_name)]
    )
