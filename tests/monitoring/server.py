"""A real Prometheus that scrapes a test's processes, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from paceline.local.plan import HOST, choose_addresses
from tests.monitoring.tool import tool
from tests.pods import Pod


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is pending or firing."""

    name: str
    firing: bool
    labels: Mapping[str, str]


class Prometheus:
    """Scrapes each second and evaluates the given files of rules. Use as a context manager."""

    def __init__(self, folder: Path, rules: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._targets = folder / "targets.yaml"
        self._targets.write_text("[]")
        port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port
        self._url = f"http://{HOST}:{port}"
        self._settings = folder / "prometheus.yaml"
        self._settings.write_text(
            yaml.safe_dump(
                {
                    "global": {
                        "scrape_interval": "1s",
                        "scrape_timeout": "1s",
                        "evaluation_interval": "1s",
                    },
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": [
                        {
                            "job_name": "paceline",
                            "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}],
                        }
                    ],
                }
            )
        )

    def __enter__(self) -> Self:
        command = [str(tool("prometheus")), f"--config.file={self._settings}"]
        command += [f"--storage.tsdb.path={self._folder / 'data'}", "--log.level=warn"]
        command += [f"--web.listen-address={self._url.removeprefix('http://')}"]
        self._pod = Pod("prometheus", command, self._folder)
        self._pod.until(self._ready)
        return self

    def __exit__(self, *exc: object) -> None:
        self._pod.stop()

    def scrape(self, ports: Mapping[str, int]) -> None:
        """Scrape these processes from now on: by name, the port of each one's metrics on this machine."""
        groups = [
            {"targets": [f"{HOST}:{port}"], "labels": {"process": name}} for name, port in ports.items()
        ]
        # It reads the file when it changes: never half of it.
        written = self._targets.with_suffix(".new")
        written.write_text(yaml.safe_dump(groups))
        written.rename(self._targets.with_suffix(".yaml"))

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and values of an instant vector, or a scalar's value."""
        data = self._get("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]

    def healthy_targets(self) -> int:
        """Number of processes whose last scrape went well."""
        return sum(target["health"] == "up" for target in self._get("targets")["activeTargets"])

    def alerts(self) -> list[Alert]:
        """Those that are pending or firing."""
        return [
            Alert(each["labels"]["alertname"], each["state"] == "firing", each["labels"])
            for each in self._get("alerts")["alerts"]
        ]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert.name for alert in self.alerts() if alert.firing}

    def faulty_rules(self) -> dict[str, str]:
        """By name, why the last evaluation of a rule failed."""
        groups = self._get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")}

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=10)
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False
