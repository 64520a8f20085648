"""Every value of the chart is described, typed, used, and refused where it is misspelt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import CHART, EVERYTHING, ROOT, RefusedError, Values, template

DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

# Other values than those of values.yaml where the type does not give one that the schema takes.
OTHERS: dict[str, Any] = {
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"secretRef": {"name": "other"}}],
    "extraVolumes": [{"name": "other", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "other", "mountPath": "/other"}],
    "extraInitContainers": [{"name": "other", "image": "other"}],
    "tolerations": [{"key": "other", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "other", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "parentRefs": [{"name": "other"}],
    "entries": [{"id": "team", "sha256": ["0" * 64]}],
    "resources": {"requests": {"cpu": "7"}},
    "strategy": {"rollingUpdate": {"maxSurge": 2}},
    "issuerRef": {"name": "other"},
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 7}},
    "digest": f"sha256:{'0' * 64}",
    "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    "networkPolicy.redis": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "networkPolicy.apiServer": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "networkPolicy.clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "redisPorts": [7000],
    "apiServerPorts": [7000],
    "accessModes": ["ReadWriteOnce"],
    "discovery.verifiers": ["other:9000"],
    "discovery.drafters": ["other:9100"],
    "affinity": {"podAntiAffinity": {}},
    "maxMemory": "7mb",
    "external.url": "rediss+cluster://other:6379",
    "mountPath": "/other",
    "ingress.path": "/other",
    "duration": "7h",
    "renewBefore": "7h",
    "interval": "7s",
    "redis.mode": "none",
    "verifierPools": {"other": {}},
    "drafterPools": {"other": {}},
    "weights.hostPath": "/other",
}
GIVEN = dict.fromkeys(("gateway", "verifier", "drafter", "autoscaler"), "given")
# In whose light a value shows; the first that shows it is enough.
STATIC: Values = {"gateway": {"discovery": {"mode": "static", "verifiers": ["a:9000"]}}}
BASES: list[Values | None] = [
    None,  # everything.yaml
    {},
    STATIC,
    {
        "model": {"cache": {"type": "hostPath"}},
        "redis": {"mode": "external", "external": {"url": "redis://a"}},
    },
    {
        "tls": {
            "services": {
                "enabled": True,
                "certManager": {"enabled": False},
                "existingSecrets": GIVEN,
            },
            "public": {
                "enabled": True,
                "certManager": {"enabled": False},
                "existingSecret": "given",
            },
        },
        "autoscaling": {"drafters": {"mode": "keda"}},
    },
    {
        "tls": {
            "services": {
                "enabled": True,
                "existingSecrets": GIVEN,
            },
            "public": {
                "certManager": {"issuerRef": {"name": "given"}},
                "existingSecret": "given",
            },
        }
    },
    {
        "tls": {
            "public": {
                "enabled": True,
                "certManager": {"issuerRef": {"name": "given"}},
                "existingSecret": "given",
            }
        }
    },
    {"autoscaling": {"drafters": {"mode": "keda"}}, "gateway": {"replicas": 1}},
]


@cache
def base(number: int) -> str:
    return with_base(number, {})


def with_base(number: int, values: Values) -> str:
    given = BASES[number]
    return without_password(
        template(values, EVERYTHING) if given is None else template(merged(given, values))
    )


def merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def without_password(text: str) -> str:
    """The rendering without what is drawn anew each time."""
    return re.sub(r"(password: |paceline:|on >)[\"A-Za-z0-9]{32,34}", r"\1", text)


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all values that values.yaml has and that are no folder of others."""
    for name, each in schema["properties"].items():
        here = f"{path}.{name}".lstrip(".")
        found, value = lookup(DEFAULTS, here)
        if not found:
            continue
        if isinstance(value, dict) and each.get("additionalProperties") is False and here not in OTHERS:
            if name in ("resources", "strategy", "issuerRef"):
                yield here
            else:
                yield from leaves(each, here)
        else:
            yield here


def lookup(values: Any, path: str) -> tuple[bool, Any]:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return False, None
        values = values[part]
    return True, values


def schema_of(path: str) -> dict[str, Any]:
    schema = SCHEMA
    for part in path.split("."):
        schema = schema["properties"][part]
    return schema


def other(path: str) -> Any:
    """A value that is not the default, and that the schema takes."""
    ends = [".".join(path.split(".")[start:]) for start in range(len(path.split(".")))]
    for end in ends:
        if end in OTHERS:
            return OTHERS[end]
    value, schema = lookup(DEFAULTS, path)[1], schema_of(path)
    if "enum" in schema:
        return next(each for each in schema["enum"] if each not in (value, None))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return ["other"]
    if isinstance(value, dict):
        return {"other": "other"}
    return "7Gi" if path.endswith(("size", "sizeLimit", "sharedMemory")) else "other"


LEAVES = list(leaves(SCHEMA))


def nested(path: str, value: Any) -> Any:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("path", LEAVES)
def test_a_value_changes_what_is_rendered(path: str) -> None:
    value, refused = nested(path, other(path)), []
    for number in range(len(BASES)):
        try:
            if with_base(number, value) != base(number):
                return
        except RefusedError as error:
            refused.append(str(error))
    assert not refused, refused
    pytest.fail(f"{path} = {other(path)!r} changes nothing")


def test_the_schema_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.schema", "--check"], cwd=ROOT, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr.decode()


def test_every_value_is_commented() -> None:
    bare = []
    comment = False
    for number, line in enumerate((CHART / "values.yaml").read_text().splitlines(), 1):
        if re.match(r"\s*# -- \S", line):
            comment = True
        elif match := re.match(r"(\s*)([\w.-]+):(.*)", line):
            # A folder's values have comments of their own.
            if not comment and match[3]:
                inside = match[2] in ("type", "rollingUpdate", *DEFAULTS["security"]["pod"])
                inside |= match[2] in (*DEFAULTS["security"]["container"], "requests", "limits", "default")
                inside |= match[2] in ("scaleDown",)
                if not inside:
                    bare.append((number, line))
            comment = False
    assert not bare


def folders(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    if schema.get("additionalProperties") is False:
        yield path
        for name, each in schema["properties"].items():
            yield from folders(each, f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize(
    "folder", [*folders(SCHEMA), "verifierPools.default", "drafterPools.default.settings"]
)
def test_a_misspelt_value_is_refused(folder: str) -> None:
    path = f"{folder}.misspelt".lstrip(".")
    with pytest.raises(RefusedError, match="misspelt"):
        template(nested(path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gateway.replicas", "many"),
        ("gateway.settings.graceSeconds", "soon"),
        ("gateway.settings.queueSeconds", 601),
        ("verifier.settings.durability", "strict"),
        ("verifier.settings.port", 1),
        ("verifier.gpus", -1),
        ("redis.mode", "somewhere"),
        ("redis.external.url", "redis://user:password@host"),
        ("image.pullPolicy", "Sometimes"),
        ("verifierPools.Large", {}),
        ("verifierPools.a-name-that-is-too-long-for-objects", {}),
        ("gateway.apiKeys.entries", [{"id": "team", "sha256": ["a key, not its hash"]}]),
        ("tls.services.certManager.duration", "a day"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(path: str, value: Any) -> None:
    with pytest.raises(RefusedError, match=path.split(".")[-1]):
        template(nested(path, value))
