"""Who may call what: the table, and the check in front of a server's methods."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from paceline.keda import externalscaler_pb2
from paceline.net.roles import MAY_CALL, Role
from paceline.v1 import drafter_pb2, verifier_pb2


def test_every_method_between_services_is_in_the_table_and_nothing_else() -> None:
    files = (verifier_pb2, drafter_pb2, externalscaler_pb2, health_pb2, reflection_pb2)
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(MAY_CALL) == methods


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        ("/paceline.v1.VerifierService/Open", {Role.GATEWAY}),
        ("/paceline.v1.VerifierService/Draft", {Role.DRAFTER}),
        ("/paceline.v1.DrafterService/Attach", {Role.GATEWAY}),
        ("/paceline.v1.DrafterService/Detach", {Role.GATEWAY}),
        ("/externalscaler.ExternalScaler/GetMetrics", {Role.AUTOSCALER}),
    ],
)
def test_what_moves_sessions_belongs_to_one_role(method: str, roles: set[Role]) -> None:
    assert MAY_CALL[method] == roles


def test_a_role_is_its_whole_name_and_nothing_like_it() -> None:
    names = [
        "paceline-role-verifier.example",
        "*.paceline.internal",
        "VERIFIER",
        "x.paceline-role-drafter",
    ]
    assert Role.of_names(names) == frozenset()
    assert Role.of_names([*names, "paceline-role-drafter"]) == {Role.DRAFTER}
