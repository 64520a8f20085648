"""What `make chart-check` gives podman: the chart's workloads, whole but for what podman does not do."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from paceline.local.plan import choose_addresses
from tests.deploy.rendering import template
from tests.images.chart import VALUES, WORKLOADS, values
from tests.images.playing import helm_test, playable, secrets


def test_workloads_keep_their_configuration_and_secrets(tmp_path: Path) -> None:
    at = choose_addresses(http_port=0, grpc_port=0, verifiers=2, drafters=6)
    objects = [each for each in yaml.safe_load_all(template(values(at, tmp_path), VALUES)) if each]
    played, known = playable(objects), secrets(objects)
    named = {(each["kind"], each["metadata"]["name"]): each for each in played}
    for workload in WORKLOADS:
        pod = named["Deployment", f"fleet-paceline-{workload}"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "livenessProbe" not in container
        for variable in container.get("env", ()):
            if source := variable.get("valueFrom"):
                assert source["secretKeyRef"]["key"] in known[source["secretKeyRef"]["name"]]
        for volume in pod["volumes"]:
            if source := volume.get("configMap"):
                assert ("ConfigMap", source["name"]) in named
    secret = known["fleet-paceline-redis"]
    mounted = named["ConfigMap", "mounted-fleet-paceline-redis"]["data"]
    assert base64.b64decode(secret["users.acl"]).decode() == mounted["users.acl"]
    assert mounted["users.acl"].startswith("user default off\n")
    assert helm_test(objects)["command"][:2] == ["paceline", "generate"]
