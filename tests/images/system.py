"""Redis and the three services as containers on this machine's network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openai import OpenAI, Stream
from openai.types import Completion

from paceline.addresses import parse_address
from paceline.local.plan import choose_addresses
from tests.images.build import REDIS, SERVICES, image
from tests.images.checks import MODEL, MODEL_PATH
from tests.images.engine import Container, Engine

# The volume of compiled kernels.
KERNELS = "paceline-check-kernels"


@dataclass(frozen=True, slots=True)
class Drafting:
    """By which image, with which settings, and what the verifier is told for it."""

    image: str
    drafter: Mapping[str, str] = field(default_factory=dict)
    verifier: Mapping[str, str] = field(default_factory=dict)


FROM_TEXT = Drafting("drafter")
WITH_HEAD = Drafting(
    "neural-drafter",
    {"METHOD": "lookup+recycling+eagle", "MODEL": MODEL_PATH, "DEVICE": "cpu", "THREADS": "1"},
    {"KEEP_STATES": "eagle", "DTYPE": "bfloat16"},
)


def accepted_by_source(pieces: Iterable[Completion]) -> dict[str, int]:
    """Drafted tokens of a streamed answer that were accepted, by what they came from."""
    told = [
        each.model_extra["paceline"] for each in pieces if each.model_extra and "paceline" in each.model_extra
    ]
    return {name: counts["accepted_tokens"] for name, counts in told[-1]["sources"].items()}


class System:
    """Use `remove` at the end, whatever happened."""

    def __init__(self, engine: Engine, model: Path, drafting: Drafting = FROM_TEXT) -> None:
        self._drafting = drafting
        self.at = choose_addresses(http_port=0, grpc_port=0, verifiers=1, drafters=2)
        self.containers: dict[str, Container] = {}
        self._engine = engine
        self._model = model

    def start(self) -> None:
        """Return when all are healthy, by the checks of their own images, and the gateway is ready."""
        verifier, (drafter, redis) = self.at.verifiers[0], self.at.drafters
        self._run("redis", REDIS, "--port", _port(redis), "--save", "", "--bind", "127.0.0.1")
        model = {"MODEL": MODEL_PATH, "MODEL_NAME": MODEL, "REDIS_URL": f"redis://{redis}/0"}
        small = {"DEVICE": "cpu", "DTYPE": "float32", "KV_TOKENS": "32768"}
        self._serve("verifier", PORT=_port(verifier), **{**small, **self._drafting.verifier}, **model)
        self._serve("drafter", PORT=_port(drafter), **self._drafting.drafter)
        ports = {"PORT": _port(self.at.grpc), "HTTP_PORT": str(self.at.http_port)}
        self._serve("gateway", VERIFIERS=verifier, DRAFTERS=drafter, POLL_SECONDS="0.2", **ports, **model)
        for service in SERVICES:
            container = self.containers[service]
            container.until(container.healthy)
        gateway = self.containers["gateway"]
        gateway.until(lambda: gateway.execute("paceline", "health", "gateway", "--ready"))

    def stream(self, prompt: str, tokens: int, *, drafted: bool = True) -> Stream[Completion]:
        """The pieces of an answer of so many tokens, as OpenAI's client receives them."""
        client = OpenAI(base_url=f"{self.at.url}/v1", api_key="none", max_retries=0)
        return client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "speculation": {"enabled": drafted}},
        )

    def remove(self) -> None:
        """Take all of it away."""
        for container in self.containers.values():
            container.remove()

    def _serve(self, service: str, **settings: str) -> None:
        settings["GRACE_SECONDS"] = "600"  # for machines that are busy with other things
        variables = {f"PACELINE_{service.upper()}_{name}": value for name, value in settings.items()}
        volumes = [f"{self._model}:{MODEL_PATH}:ro"] if "MODEL" in settings else []
        named = self._drafting.image if service == "drafter" else service
        if named in ("verifier", "neural-drafter"):  # compiled once for all runs on this machine
            volumes.append(f"{KERNELS}:/var/cache/paceline/kernels")
        name = f"paceline-check-{service}"
        self.containers[service] = self._engine.run(name, image(named), variables=variables, volumes=volumes)

    def _run(self, service: str, name: str, *command: str) -> None:
        self.containers[service] = self._engine.run(f"paceline-check-{service}", name, *command)


def _port(address: str) -> str:
    return str(parse_address(address)[1])
