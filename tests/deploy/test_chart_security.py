"""Certificates, keys, passwords, and who may reach whom."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.keys import ApiKeys
from paceline.api_keys import api_key_hash, new_api_key
from paceline.net.roles import Role
from paceline.redis.url import open_url
from paceline.store import RedisStore
from tests.deploy.rendering import EVERYTHING, Object, RefusedError, Rendered, container, environment
from tests.deploy.test_chart_settings import told
from tests.redis_servers import RedisServer

SERVICES = ("gateway", "verifier", "drafter")


def workload(service: str) -> str:
    return f"fleet-paceline-{service}" + ("" if service == "gateway" else "-default")


def secrets_of(pod: Object) -> dict[str, str]:
    """Where each Secret is mounted."""
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    return {
        volume["secret"]["secretName"]: mounts[volume["name"]]
        for volume in pod["volumes"]
        if "secret" in volume
    }


def test_cert_manager_gives_each_service_its_role() -> None:
    rendered = Rendered.of({"tls": {"services": {"enabled": True}}})
    for role in (Role.GATEWAY, Role.VERIFIER, Role.DRAFTER):
        certificate = rendered.one("Certificate", f"fleet-paceline-{role}-tls")["spec"]
        assert certificate["dnsNames"] == [role.dns_name]
        # It is shown to servers, too.
        assert {"server auth", "client auth"} <= set(certificate["usages"])
        pod = rendered.pod("Deployment", workload(role))
        folder = secrets_of(pod)[certificate["secretName"]]
        assert environment(pod)[f"PACELINE_{role.upper()}_TLS_CERT"] == f"{folder}/tls.crt"
        assert environment(pod)[f"PACELINE_{role.upper()}_TLS_KEY"] == f"{folder}/tls.key"
        assert environment(pod)[f"PACELINE_{role.upper()}_TLS_CA"] == f"{folder}/ca.crt"
        # The CA is the fleet's own, as whoever it signs for can be any service.
        issuer = rendered.one("Issuer", certificate["issuerRef"]["name"])["spec"]
        assert (
            rendered.one("Certificate", "fleet-paceline-ca")["spec"]["secretName"]
            == issuer["ca"]["secretName"]
        )


def test_keda_has_a_role_of_its_own() -> None:
    keda = {"mode": "keda"}
    values = {"tls": {"services": {"enabled": True}}, "autoscaling": {"drafters": keda}}
    rendered = Rendered.of(values)
    certificate = rendered.one("Certificate", "fleet-paceline-autoscaler-tls")["spec"]
    assert certificate["dnsNames"] == [Role.AUTOSCALER.dns_name]
    (scaled,) = rendered.all("ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["enableTLS"] == "true"
    shown = rendered.one("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]
    assert {each["parameter"]: each["key"] for each in shown["secretTargetRef"]} == {
        "caCert": "ca.crt",
        "tlsClientCert": "tls.crt",
        "tlsClientKey": "tls.key",
    }
    assert {each["name"] for each in shown["secretTargetRef"]} == {certificate["secretName"]}
    # KEDA compares the name that it calls.
    host = trigger["metadata"]["scalerAddress"].rpartition(":")[0]
    names = rendered.one("Certificate", "fleet-paceline-gateway-tls")["spec"]["dnsNames"]
    assert names == [Role.GATEWAY.dns_name, host]
    assert not Rendered.of({"autoscaling": {"drafters": keda}}).all("TriggerAuthentication")


def test_certificates_may_come_from_a_given_issuer_or_from_given_secrets() -> None:
    given = {"issuerRef": {"name": "fleet", "kind": "ClusterIssuer"}}
    rendered = Rendered.of({"tls": {"services": {"enabled": True, "certManager": given}}})
    assert not rendered.all("Issuer")
    for each in rendered.all("Certificate"):
        assert each["spec"]["issuerRef"] == {
            "name": "fleet",
            "kind": "ClusterIssuer",
            "group": "cert-manager.io",
        }

    secrets = {service: f"{service}-certificate" for service in SERVICES}
    named = {"enabled": True, "certManager": {"enabled": False}, "existingSecrets": secrets}
    rendered = Rendered.of({"tls": {"services": named}})
    assert not rendered.all("Certificate")
    for service in SERVICES:
        assert (
            secrets_of(rendered.pod("Deployment", workload(service)))[secrets[service]] == "/etc/paceline/tls"
        )
    with pytest.raises(RefusedError, match=r"existingSecrets\.drafter names the certificate"):
        Rendered.of({"tls": {"services": named | {"existingSecrets": {"gateway": "a", "verifier": "b"}}}})


def test_clients_may_be_given_tls_by_the_gateway_itself() -> None:
    issuer = {"issuerRef": {"name": "public"}, "dnsNames": ["llm.example.com"]}
    rendered = Rendered.of({"tls": {"public": {"enabled": True, "certManager": issuer}}})
    certificate = rendered.one("Certificate", "fleet-paceline-public-tls")["spec"]
    assert {"llm.example.com", "fleet-paceline-gateway"} < set(certificate["dnsNames"])
    pod = rendered.pod("Deployment", workload("gateway"))
    folder = secrets_of(pod)["fleet-paceline-public-tls"]
    assert environment(pod)["PACELINE_GATEWAY_PUBLIC_TLS_CERT"] == f"{folder}/tls.crt"
    assert container(pod)["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert (
        f"--ca={folder}/ca.crt"
        in container(rendered.one("Pod", "fleet-paceline-test-completion")["spec"])["command"]
    )
    with pytest.raises(RefusedError, match="names the issuer that clients trust"):
        Rendered.of({"tls": {"public": {"enabled": True}}})


def test_entries_of_keys_become_the_file_that_gateways_read(tmp_path: Path) -> None:
    key = new_api_key()
    entry = {"id": "team", "sha256": [api_key_hash(key)], "limits": {"tokens_per_minute": 2_000_000}}
    rendered = Rendered.of({"gateway": {"apiKeys": {"entries": [entry]}}})
    secret = rendered.one("Secret", "fleet-paceline-api-keys")
    pod = rendered.pod("Deployment", workload("gateway"))
    folder = Path(secrets_of(pod)["fleet-paceline-api-keys"])
    file = Path(environment(pod)["PACELINE_GATEWAY_API_KEYS_FILE"])
    assert file.parent == folder
    (tmp_path / file.name).write_text(secret["stringData"][file.name])
    caller = ApiKeys(str(tmp_path / file.name)).caller(key)
    assert caller is not None
    assert caller.id == "team"
    assert key not in rendered.text


def test_keys_may_be_in_a_given_secret() -> None:
    rendered = Rendered.of({"gateway": {"apiKeys": {"existingSecret": "ours", "key": "all.json"}}})
    pod = rendered.pod("Deployment", workload("gateway"))
    assert environment(pod)["PACELINE_GATEWAY_API_KEYS_FILE"] == f"{secrets_of(pod)['ours']}/all.json"
    assert "fleet-paceline-api-keys" not in rendered.names("Secret")


async def test_the_store_inside_lets_its_own_user_in_and_nobody_else(tmp_path: Path) -> None:
    """A real server with the rendered files: the services' URL works, and strangers are refused."""
    rendered = Rendered.of({"redis": {"internal": {"password": "p@ss/word"}}})
    secret = rendered.one("Secret", "fleet-paceline-redis")["stringData"]
    (tmp_path / "users.acl").write_text(secret["users.acl"])
    config = rendered.one("ConfigMap", "fleet-paceline-redis")["data"]["redis.conf"]
    (tmp_path / "redis.conf").write_text(config)
    options = [line.split(maxsplit=1) for line in config.splitlines() if line and not line.startswith("#")]
    known = {"bind", "port", "dir", "aclfile", "save"}
    flags = [word for name, value in options if name not in known for word in (f"--{name}", value)]
    assert {name for name, _ in options} > known
    for service in ("gateway", "verifier"):
        (variable,) = [
            each
            for each in container(rendered.pod("Deployment", workload(service)))["env"]
            if each["name"].endswith("REDIS_URL")
        ]
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "fleet-paceline-redis", "key": "url"}
    server = RedisServer("chart", tmp_path, flags)
    with server:
        server.asked.execute_command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        for line in secret["users.acl"].splitlines():
            server.asked.execute_command("ACL", "SETUSER", *line.split()[1:])
        url = secret["url"].replace("fleet-paceline-redis:6379", f"127.0.0.1:{server.port}")
        store = RedisStore(url, ttl_seconds=60)
        await store.ping()
        await store.close()
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_password_that_is_not_given_is_drawn() -> None:
    first, second = (
        Rendered.of({}).one("Secret", "fleet-paceline-redis")["stringData"]["password"] for _ in range(2)
    )
    assert first != second
    assert len(first) == 32
    assert not Rendered.of({"redis": {"internal": {"existingSecret": "ours"}}}).all("Secret")


@pytest.mark.parametrize(
    ("external", "url"),
    [
        ({"url": "redis://host:6379/1"}, "redis://host:6379/1"),
        ({"url": "rediss://host:6379/0", "existingSecret": "s"}, "rediss://x:x@host:6379/0"),
        ({"url": "redis://host", "existingSecret": "s", "usernameKey": ""}, "redis://:x@host"),
        (
            {
                "url": "redis+sentinel://a:26379,b:26379/sessions",
                "existingSecret": "s",
                "sentinelUsernameKey": "su",
                "sentinelPasswordKey": "sp",
            },
            "redis+sentinel://x:x@a:26379,b:26379/sessions?sentinel_username=x&sentinel_password=x",
        ),
        (
            {"url": "rediss+cluster://a,b", "tls": {"existingSecret": "ca", "clientCertificate": True}},
            "rediss+cluster://a,b?ssl_ca_certs=/etc/paceline/redis-tls/ca.crt"
            "&ssl_certfile=/etc/paceline/redis-tls/tls.crt&ssl_keyfile=/etc/paceline/redis-tls/tls.key",
        ),
        (
            {"url": "rediss://a?health_check_interval=5", "tls": {"existingSecret": "ca"}},
            "rediss://a?health_check_interval=5&ssl_ca_certs=/etc/paceline/redis-tls/ca.crt",
        ),
    ],
    ids=str,
)
def test_an_external_store_is_found_by_a_url_that_services_take(external: dict[str, Any], url: str) -> None:
    rendered = Rendered.of({"redis": {"mode": "external", "external": external}})
    pod = rendered.pod("Deployment", workload("verifier"))
    assert told(pod)["PACELINE_VERIFIER_REDIS_URL"] == url
    if "ssl_certfile" not in url and "ssl_ca" not in url:
        open_url(url, 1.0)
    assert "fleet-paceline-redis" not in rendered.names("Deployment")
    assert not rendered.all("Secret")


def test_the_whole_url_of_a_store_may_be_secret() -> None:
    external = {"existingSecret": "ours", "urlKey": "address"}
    rendered = Rendered.of({"redis": {"mode": "external", "external": external}})
    for service in ("gateway", "verifier"):
        env = {each["name"]: each for each in container(rendered.pod("Deployment", workload(service)))["env"]}
        given = env[f"PACELINE_{service.upper()}_REDIS_URL"]["valueFrom"]["secretKeyRef"]
        assert given == {"name": "ours", "key": "address"}


def test_drafters_know_no_store() -> None:
    for values in ({}, {"redis": {"mode": "external", "external": {"url": "redis://a"}}}):
        assert not any(
            "REDIS" in name for name in told(Rendered.of(values).pod("Deployment", workload("drafter")))
        )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"redis": {"mode": "none"}}, "set gateway.replicas to 1"),
        ({"redis": {"mode": "external"}}, "give redis.external.url"),
        ({"redis": {"mode": "external", "external": {"urlKey": "url"}}}, "name the Secret"),
        (
            {"redis": {"mode": "external", "external": {"url": "redis://a", "tls": {"existingSecret": "b"}}}},
            "must begin with rediss",
        ),
        ({"gateway": {"discovery": {"mode": "static"}}}, "name the verifiers"),
        ({"model": {"source": "/models/a", "fetch": True}}, "model.source is a folder"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_what_to_do(values: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        Rendered.of(values)


# Who may open connections to whom, and at which of the port's names.
ARROWS = {
    ("gateway", "verifier", "grpc"),
    ("gateway", "drafter", "grpc"),
    ("drafter", "verifier", "grpc"),
    ("gateway", "redis", "redis"),
    ("verifier", "redis", "redis"),
    ("test", "gateway", "http"),
    ("test", "gateway", "grpc"),
    ("test", "redis", "redis"),
}


def allows(rules: list[Object], peers: str, other: dict[str, str], port: str, number: int) -> Iterator[bool]:
    for rule in rules:
        ports = {each["port"] for each in rule.get("ports", ())}
        if ports and not ports & {port, number}:
            continue
        selectors = [
            each.get("podSelector", {}).get("matchLabels", {})
            for each in rule.get(peers, [{}])
            if "ipBlock" not in each and "namespaceSelector" not in each
        ]
        yield any(selector.items() <= other.items() for selector in selectors)


def allowed(rendered: Rendered) -> set[tuple[str, str, str]]:
    """Every pair of pods and port that the policies let through, as a CNI would decide it."""
    policies = [each["spec"] for each in rendered.all("NetworkPolicy")]
    pods = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for _, pod in rendered.pods()}
    found = set()
    for (source, sender), (target, receiver) in product(pods.items(), repeat=2):
        from_labels, to_labels = sender["metadata"]["labels"], receiver["metadata"]["labels"]
        for port in container(receiver["spec"]).get("ports", ()):
            passes = []
            for labels, other, kind, peers in (
                (from_labels, to_labels, "egress", "to"),
                (to_labels, from_labels, "ingress", "from"),
            ):
                rules = [
                    rule
                    for policy in policies
                    if policy["podSelector"]["matchLabels"].items() <= labels.items()
                    for rule in policy.get(kind, ())
                ]
                passes.append(any(allows(rules, peers, other, port["name"], port["containerPort"])))
            if all(passes):
                found.add((source, target, port["name"]))
    return found


def test_only_the_arrows_of_the_data_flow_are_let_through() -> None:
    assert allowed(Rendered.of({})) == ARROWS
    restricted = {"networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}}
    assert allowed(Rendered.of(restricted)) == ARROWS


def test_every_pod_is_under_a_policy_that_denies() -> None:
    rendered = Rendered.of(None, EVERYTHING)
    (deny,) = [each for each in rendered.all("NetworkPolicy") if each["metadata"]["name"].endswith("-deny")]
    assert set(deny["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not deny["spec"].keys() & {"ingress", "egress"}
    for name, pod in rendered.pods():
        assert deny["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), name


def test_the_scaler_is_reached_from_kedas_namespace_alone() -> None:
    rendered = Rendered.of({"autoscaling": {"drafters": {"mode": "keda"}}})
    rules = rendered.one("NetworkPolicy", "fleet-paceline-gateway")["spec"]["ingress"]
    (scaler,) = [rule for rule in rules if {"port": "scaler", "protocol": "TCP"} in rule["ports"]]
    assert scaler["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}]
