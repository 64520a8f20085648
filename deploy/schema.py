"""Write `chart/values.schema.json`: from the chart's values, and from the services' settings.

    python -m deploy.schema            # write it
    python -m deploy.schema --check    # say whether it is up to date

Every key of values.yaml is a property with the type of its default; no other key is allowed. `REFINED` says
more where a default does not say enough. What may stand under `settings` are the fields of the services'
settings classes, in camelCase, without those that the chart itself sets.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from drafter_svc.config import DrafterSettings
from gateway.config import GatewaySettings
from paceline.service.settings import ServiceSettings
from verifier_svc.config import VerifierSettings

CHART = Path(__file__).parent / "chart"
SCHEMA = CHART / "values.schema.json"
Json = dict[str, Any]

# Settings that templates set from other values.
SET_BY_CHART = frozenset(
    {
        *("host", "port", "http_port", "metrics_port", "scaler_port"),
        *("model", "model_name", "trust_remote_code", "pool"),
        *("redis_url", "session_ttl_seconds", "durability"),
        *("tls_cert", "tls_key", "tls_ca", "public_tls_cert", "public_tls_key", "api_keys_file"),
        *("discovery", "verifiers", "drafters"),
        *("kubernetes_namespace", "kubernetes_selector", "kubeconfig"),
    }
)
SERVICES: Mapping[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "verifier": VerifierSettings,
    "drafter": DrafterSettings,
}
# Values that have `settings`, and whose they are.
SETTINGS_OF: Mapping[str, str] = {**{service: service for service in SERVICES}, "neuralDrafter": "drafter"}

WORDS: Json = {"type": "object", "additionalProperties": {"type": "string"}}
NAME: Json = {"type": "string", "pattern": r"^$|^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}
PORT: Json = {"type": "integer", "minimum": 1, "maximum": 65535}
PORTS: Json = {"type": "array", "items": PORT, "minItems": 1}
SECONDS: Json = {"type": "number", "minimum": 0}
COUNT: Json = {"type": "integer", "minimum": 0}
SOME: Json = {"type": "integer", "minimum": 1}
QUANTITY: Json = {"type": ["string", "number"], "pattern": r"^$|^[0-9]+(\.[0-9]+)?([mkMGTPE]|[KMGTPE]i)?$"}
DURATION: Json = {"type": "string", "pattern": r"^([0-9]+(h|m|s))+$"}
DIGEST: Json = {"type": "string", "pattern": r"^$|^sha256:[0-9a-f]{64}$"}
ADDRESSES: Json = {"type": "array", "items": {"type": "string", "pattern": r"^.+:[0-9]+$"}}
HOSTS: Json = {"type": "array", "items": {"type": "string", "minLength": 1}}
COUNT_OR_SHARE: Json = {"anyOf": [COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}
# Objects of Kubernetes, whose own schemas are held to the output (tests/deploy).
OPEN: Json = {"type": "object"}
OPEN_LIST: Json = {"type": "array", "items": {"type": "object"}}
NAMED_LIST: Json = {"type": "array", "items": {"type": "object", "required": ["name"]}}


def closed(**properties: Json) -> Json:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def one_of(*words: str) -> Json:
    return {"enum": list(words)}


TEXT: Json = {"type": "string"}
AMOUNTS: Json = {"type": "object", "additionalProperties": QUANTITY}
STRATEGY = closed(
    type=one_of("RollingUpdate", "Recreate"),
    rollingUpdate={
        "anyOf": [{"type": "null"}, closed(maxSurge=COUNT_OR_SHARE, maxUnavailable=COUNT_OR_SHARE)]
    },
)
TOLERATION = closed(
    key=TEXT,
    operator=one_of("Exists", "Equal"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds=COUNT,
)
KEY_ENTRY = closed(
    id={"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    sha256={"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    scopes={"type": "array", "items": one_of("generate", "status")},
    expires=TEXT,
    limits=closed(concurrent_sessions=SOME, queued_requests=COUNT, tokens_per_minute=SOME),
) | {"required": ["id", "sha256"]}

# By the end of a value's path; the longest end that fits decides.
REFINED: Mapping[str, Json] = {
    "commonLabels": WORDS,
    "commonAnnotations": WORDS,
    "annotations": WORDS,
    "podLabels": WORDS,
    "podAnnotations": WORDS,
    "nodeSelector": WORDS,
    "monitoring.labels": WORDS,
    "dashboards.labels": WORDS,
    "namespaceLabels": WORDS,
    "prometheusNamespaceLabels": WORDS,
    "dnsPodLabels": WORDS,
    "affinity": OPEN,
    "tolerations": {"type": "array", "items": TOLERATION},
    "topologySpreadConstraints": {
        "type": "array",
        "items": {"type": "object", "required": ["maxSkew", "topologyKey", "whenUnsatisfiable"]},
    },
    "resources": closed(requests=AMOUNTS, limits=AMOUNTS),
    "security.pod": OPEN,
    "security.container": OPEN,
    "podSecurityContext": OPEN,
    "containerSecurityContext": OPEN,
    "extraEnv": NAMED_LIST,
    "extraVolumes": NAMED_LIST,
    "extraInitContainers": NAMED_LIST,
    "extraEnvFrom": OPEN_LIST,
    "extraVolumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
    "parentRefs": NAMED_LIST,
    "networkPolicy.clients": OPEN_LIST,
    "networkPolicy.redis": OPEN_LIST,
    "networkPolicy.apiServer": OPEN_LIST,
    "networkPolicy.extraEgress": OPEN_LIST,
    "behavior": OPEN,
    "strategy": STRATEGY,
    "apiKeys.entries": {"type": "array", "items": KEY_ENTRY},
    "pullPolicy": one_of("Always", "IfNotPresent", "Never"),
    "pullSecrets": {"type": "array", "items": NAME | {"minLength": 1}},
    "image.digest": DIGEST,
    "model.source": {"type": "string", "minLength": 1},
    "variant": one_of("text", "neural"),
    "weights.type": one_of("none", "persistentVolumeClaim", "hostPath"),
    "weights.mountPath": {"type": "string", "pattern": "^/.+"},
    "weights.hostPath": {"type": "string", "pattern": "^$|^/.+"},
    "cache.type": one_of("emptyDir", "persistentVolumeClaim", "hostPath"),
    "cache.mountPath": {"type": "string", "pattern": "^/.+"},
    "accessModes": {
        "type": "array",
        "minItems": 1,
        "items": one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    },
    "size": QUANTITY,
    "sizeLimit": QUANTITY,
    "sharedMemory": QUANTITY,
    "existingSecret": NAME,
    "existingClaim": NAME,
    "tlsSecret": NAME,
    "existingSecrets.gateway": NAME,
    "existingSecrets.verifier": NAME,
    "existingSecrets.drafter": NAME,
    "existingSecrets.autoscaler": NAME,
    "discovery.mode": one_of("kubernetes", "dns", "static"),
    "discovery.verifiers": ADDRESSES,
    "discovery.drafters": ADDRESSES,
    "service.type": one_of("ClusterIP", "NodePort", "LoadBalancer"),
    "hosts": HOSTS,
    "hostnames": HOSTS,
    "dnsNames": HOSTS,
    "ingress.path": {"type": "string", "pattern": "^/"},
    "httpPort": PORT,
    "grpcPort": PORT,
    "ports.http": PORT,
    "ports.grpc": PORT,
    "ports.metrics": PORT,
    "ports.rendezvous": PORT,
    "internal.port": PORT,
    "scalerPort": PORT,
    "otlpPort": PORT,
    "redisPorts": PORTS,
    "apiServerPorts": PORTS,
    "preStopSeconds": COUNT,
    "startupSeconds": SOME,
    "periodSeconds": SOME,
    "timeoutSeconds": SOME,
    "failureThreshold": SOME,
    "maxUnavailable": COUNT_OR_SHARE,
    "replicas": COUNT,
    "minReplicas": COUNT,
    "gateway.autoscaling.minReplicas": SOME,
    "maxReplicas": SOME,
    "targetCPUUtilizationPercentage": SOME,
    "gpus": COUNT,
    "tensorParallel": COUNT,
    "nodes": SOME,
    "redis.mode": one_of("internal", "external", "none"),
    "redis.durability": one_of("strict", "relaxed"),
    "sessionTtlSeconds": SOME,
    "internal.command": {"type": "array", "minItems": 1, "items": TEXT},
    "maxMemory": {"type": "string", "pattern": "^[0-9]+(kb|mb|gb)$"},
    "external.url": {"type": "string", "pattern": r"^$|^rediss?(\+(sentinel|cluster))?://[^@]+$"},
    "issuerRef": closed(name=TEXT, kind=one_of("Issuer", "ClusterIssuer"), group=TEXT),
    "duration": DURATION,
    "renewBefore": DURATION,
    "interval": DURATION,
    "verifiers.mode": one_of("none", "keda", "hpa"),
    "drafters.mode": one_of("none", "keda", "hpa"),
    "pollingInterval": SOME,
    "cooldownPeriod": COUNT,
    "monitor": one_of("none", "PodMonitor", "ServiceMonitor"),
    "maxTokens": SOME,
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _of_field(field: Json) -> Json:
    """A setting's schema as pydantic has it, without what only Python needs; null takes the default."""
    kept = {name: field[name] for name in ("description",) if name in field}
    kinds = field.get("anyOf", [field])
    names = "type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength"
    facts = {
        name: kind[name] for kind in kinds if kind.get("type") != "null" for name in names if name in kind
    }
    if "type" in facts:
        facts["type"] = [facts["type"], "null"]
    if "enum" in facts:
        facts.pop("type", None)
    return facts | kept


def settings_schema(service: str | None) -> Json:
    """What may stand under `settings` of a service; None: under the settings of all."""
    of = SERVICES[service] if service else ServiceSettings
    fields = of.model_json_schema()["properties"]
    names = [name for name in of.model_fields if name not in SET_BY_CHART]
    return closed(**{camel(name): _of_field(fields[name]) for name in names})


def _comments() -> Mapping[str, str]:
    """The comment `# -- ...` of each value, by path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    said = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := re.fullmatch(r"\s*# -- (.*)", line):
            said = match[1]
        elif match := re.match(r"(\s*)([\w.-]+):", line):
            depth = len(match[1])
            path = [*(part for part in path if part[0] < depth), (depth, match[2])]
            if said:
                found[".".join(name for _, name in path)] = said
            said = ""
    return found


def _refined(path: str) -> Json | None:
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((REFINED[end] for end in ends if end in REFINED), None)


_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}


def _of_value(path: str, value: Any, comments: Mapping[str, str]) -> Json:
    of, _, rest = path.rpartition(".")
    if path == "settings":
        schema = settings_schema(None)
    elif rest == "settings" and of in SETTINGS_OF:
        schema = settings_schema(SETTINGS_OF[of])
    elif refined := _refined(path):
        schema = dict(refined)
    elif isinstance(value, dict):
        schema = closed(**{key: _of_value(f"{path}.{key}", each, comments) for key, each in value.items()})
    else:
        schema = {"type": _PLAIN[type(value)]}
    return schema | ({"description": comments[path]} if path in comments else {})


def build() -> Json:
    """The whole schema."""
    comments = _comments()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    properties = {key: _of_value(key, value, comments) for key, value in values.items()}
    for kind in ("verifier", "drafter"):
        properties[f"{kind}Pools"] = {
            "type": "object",
            "description": comments[f"{kind}Pools"],
            "propertyNames": {"pattern": "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$"},
            "additionalProperties": {"anyOf": [{"type": "null"}, {"$ref": f"#/properties/{kind}"}]},
        }
    # Helm gives every chart these.
    properties["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Paceline"} | closed(**properties)


def _text() -> str:
    return json.dumps(build(), indent=2) + "\n"


def main(arguments: list[str]) -> Iterator[str]:
    if "--check" not in arguments:
        SCHEMA.write_text(_text())
    elif not SCHEMA.is_file() or SCHEMA.read_text() != _text():
        yield f"{SCHEMA} is not what values.yaml and the settings say: run make chart"


if __name__ == "__main__":
    sys.exit("\n".join(main(sys.argv[1:])) or 0)
