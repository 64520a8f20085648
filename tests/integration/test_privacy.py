"""What clients say, and what they are answered, is in no log and no span, whatever the log level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from bench.collector import Collector
from paceline.client import Chunk, GatewayClient, GatewayError, Generation
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

# Long enough not to come up by chance.
SECRET = "xylophone-marmalade"
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": f"say {SECRET}", "max_tokens": 16}),
    ("completions", {"prompt": f"say {SECRET}", "max_tokens": 16, "stream": True, "stop": [SECRET]}),
    ("chat/completions", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 16}),
    # Each of these is refused.
    ("completions", {"prompt": {"text": SECRET}}),
    ("completions", {"prompt": SECRET, "temperature": SECRET}),
    ("completions", {"prompt": SECRET * 2000}),
    ("completions", {"prompt": SECRET, SECRET: 1}),
    ("completions", {"prompt": "a", "stop": SECRET * 100}),
    ("chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
    ("chat/completions", {"messages": [{"role": "user", "content": [SECRET]}]}),
    ("chat/completions", {"messages": SECRET}),
]
ASKED = [
    Generation(text=f"{SECRET} {SECRET}", max_tokens=16),
    Generation.ask(SECRET, max_tokens=16),
    Generation(text=SECRET, stop=[SECRET * 100]),
    Generation(text=SECRET, temperature=-1.0),
    Generation(text=SECRET, model=SECRET),
]


class TalkativePods(Pods):
    """Logs and traces all there is."""

    collector: Collector

    def _start(self, name: str, module: str, *flags: str, ranks: int = 1) -> None:
        told = ("--log-level", "debug", "--otlp-endpoint", self.collector.address)
        super()._start(name, module, *flags, *told, ranks=ranks)


async def test_no_prompt_and_no_completion_is_in_a_log_or_a_span(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with Collector.running() as collector:
        with TalkativePods(tmp_path, tiny_model, redis_url) as pods:
            pods.collector = collector
            pods.start()
            said = await everything_said(pods)
            await wait_until(lambda: "verifier.session" in collector.names, "spans are exported")
        # The pods have ended, and have sent what they still had.
        logs = {name: pod.log.read_text() for name, pod in pods.pods.items()}
    spans = "".join(str(request) for request in collector.requests)
    assert {"gateway.request", "gateway.session", "verifier.session", "drafter.session"} <= collector.names
    for name, log in logs.items():
        assert "ready" in log
        for text in (SECRET, *said):
            assert text not in log, name
    for text in (SECRET, *said):
        assert text not in spans


async def everything_said(pods: Pods) -> list[str]:
    """Ask in every way there is; the completions, where they are long enough not to come up by chance."""
    said: list[str] = []
    async with httpx.AsyncClient(base_url=pods.http, timeout=60) as http:
        for path, body in BODIES:
            answer = await http.post(f"/v1/{path}", json={"model": MODEL, **body})
            if answer.status_code == 200 and not body.get("stream"):
                choice = answer.json()["choices"][0]
                said.append(choice.get("text") or choice["message"]["content"])
    async with GatewayClient(pods.grpc) as client:
        for asked in ASKED:
            text = ""
            try:
                async for event in client.generate(asked):
                    text += event.text if isinstance(event, Chunk) else ""
            except GatewayError:
                continue
            said.append(text)
    assert len(said) == 4
    return [text.strip() for text in said if len(text.strip()) >= 8]
