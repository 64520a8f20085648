"""What the chart tells the services by their environment is what their settings take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from deploy.schema import SERVICES, SET_BY_CHART, camel, settings_schema
from drafter_svc.__main__ import command as drafter_command
from gateway.__main__ import command as gateway_command
from paceline.service.settings import ServiceSettings, load_settings
from tests.deploy.rendering import CHART, EVERYTHING, VALUES, Object, Rendered, container
from verifier_svc.__main__ import command as verifier_command

FILES = [CHART / "values.yaml", *VALUES, EVERYTHING]
COMMANDS = {"gateway": gateway_command, "verifier": verifier_command, "drafter": drafter_command}
# What variables hold that come from Secrets.
FROM_SECRETS = {"REDIS_URL": "redis://paceline:secret@store:6379/0"}


def told(pod: Object) -> dict[str, str]:
    """The variables of a pod, with those from Secrets and fields made up, and `$(NAME)` put in."""
    told: dict[str, str] = {}
    for each in container(pod)["env"]:
        value = each.get(
            "value", next((FROM_SECRETS[end] for end in FROM_SECRETS if each["name"].endswith(end)), "x")
        )
        for name, known in told.items():
            value = value.replace(f"$({name})", known)
        told[each["name"]] = value
    return told


def accepted(service: str, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """The service's settings from these variables alone. Raises `SettingsError`."""
    for name in [name for name in os.environ if name.startswith("PACELINE_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings(SERVICES[service])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_services_start_with_what_they_are_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for _, pod in Rendered.of(None, file).pods():
        service = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        if service in SERVICES:
            seen.add(service)
            accepted(service, told(pod["spec"]), monkeypatch)
    assert seen == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_help_names_every_variable_that_the_chart_sets(service: str) -> None:
    help_text = CliRunner().invoke(COMMANDS[service], ["--help"]).output
    for _, pod in Rendered.of(None, EVERYTHING).pods():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] == service:
            names = {name for name in told(pod["spec"]) if name.startswith(f"PACELINE_{service.upper()}_")}
            assert names
            assert {name for name in names if name not in help_text} == set()


def example(schema: dict[str, Any], default: Any) -> Any:
    """A value that is not the default and is in the schema's bounds."""
    if "enum" in schema:
        return next(word for word in schema["enum"] if word not in (default, None))
    kind = schema["type"][0]
    if kind == "boolean":
        return not default
    if kind == "string":
        return "other"
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    return next(
        number
        for number in (least + 1, least + 2)
        if number != default and number <= schema.get("maximum", number)
    )


# Where not every value of the type will do.
EXAMPLES = {
    "device": "cpu",
    "keepStates": "2,15,27",
    "method": "lookup",
    "otlpEndpoint": "collector:4317",
    # Not less than the default of scaleOutSeconds.
    "scaleInSeconds": 100,
}
SETTINGS = [
    (service, name)
    for service in SERVICES
    for name in SERVICES[service].model_fields
    if name not in SET_BY_CHART
]


@pytest.mark.parametrize(("service", "name"), SETTINGS)
def test_a_setting_of_the_chart_reaches_its_service(
    service: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = camel(name)
    schema = settings_schema(service)["properties"][key]
    given = EXAMPLES.get(key, example(schema, SERVICES[service].model_fields[name].default))
    workload = "fleet-paceline-gateway" if service == "gateway" else f"fleet-paceline-{service}-default"
    rendered = Rendered.of({service: {"settings": {key: given}}})
    settings = accepted(service, told(rendered.pod("Deployment", workload)), monkeypatch)
    value = getattr(settings, name)
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    assert (str(value) if isinstance(value, Path) else value) == given


def test_a_setting_of_all_is_set_at_all_and_one_of_a_service_goes_before_it() -> None:
    rendered = Rendered.of(
        {"settings": {"logLevel": "debug"}, "drafter": {"settings": {"logLevel": "error"}}}
    )
    levels = {
        name: {key: value for key, value in told(pod["spec"]).items() if key.endswith("LOG_LEVEL")}
        for name, pod in rendered.pods()
        if "-test-" not in name and not name.endswith("redis")
    }
    assert levels == {
        "fleet-paceline-gateway": {"PACELINE_GATEWAY_LOG_LEVEL": "debug"},
        "fleet-paceline-verifier-default": {"PACELINE_VERIFIER_LOG_LEVEL": "debug"},
        "fleet-paceline-drafter-default": {"PACELINE_DRAFTER_LOG_LEVEL": "error"},
    }
