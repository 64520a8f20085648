"""`make chart-check`: play the rendered chart in podman, test it, kill its pods under a stream, upgrade it.

Needs the images, which `make images-check` builds, and the right to make a network of podman's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import replace

from openai import AsyncOpenAI

from tests.deploy.rendering import Values
from tests.images.checks import MODEL, CheckError, hold, tiny_model
from tests.images.clients import LONG, SHORT, Reader, by_events, by_grpc, by_openai, text_of
from tests.images.engine import Engine, EngineError
from tests.images.release import WORKLOADS, Release
from tests.waiting import wait_until

# What changes every pod: a setting of all services, and an annotation that Redis has, too.
UPGRADE: Values = {
    "commonAnnotations": {"example.com/upgrade": "1"},
    "settings": {"logFormat": "human"},
}
# Among so many, sessions are given to both drafters.
ANSWERS = 40
# Clients that stream during an upgrade, by each of the faces.
READERS = 2


async def check_tests(release: Release) -> None:
    """Run the pods of `helm test`."""
    print(f"helm test's completion: {(await release.test('completion')).strip()!r}")
    found = await release.test("doctor")
    hold("its settings in the environment are sound" in found, f"the doctor has not looked:\n{found}")
    print(f"helm test's doctor:\n{found.rstrip()}")


async def check_model(release: Release) -> None:
    """Ask until a session was given to the drafter with a model, and what that drafted was accepted."""
    async with AsyncOpenAI(base_url=f"{release.http}/v1", api_key="none", max_retries=0) as client:
        for _ in range(ANSWERS):
            answer = await client.completions.create(
                model=MODEL, prompt=SHORT.text or "", max_tokens=SHORT.max_tokens, temperature=0
            )
            sources = (answer.model_extra or {})["paceline"]["sources"]
            if sources.get("draft", {}).get("accepted_tokens"):
                print(f"the model drafts: {sources}")
                return
    log = release.pod("drafter-neural").container.log
    raise CheckError(f"in {ANSWERS} answers nothing was accepted of what the model drafted:\n{log[-4000:]}")


async def check_kills(release: Release) -> None:
    """Kill the one pod of each workload, each under a long stream. Its text stays what it is undisturbed."""
    undisturbed = await text_of(by_openai(release.http), LONG)
    for workload in WORKLOADS:
        pod = release.pod(workload)
        started = pod.container.state["StartedAt"]
        # A stream breaks with its gateway alone.
        ask = by_events(release.http) if workload == "gateway" else by_openai(release.http)
        text = await text_of(ask, LONG, disturb=pod.container.kill)
        hold(text == undisturbed, f"with {workload} killed, the text was another one")
        hold(pod.container.state["StartedAt"] != started, f"{workload} was not killed")
        await wait_until(pod.passes, f"{workload} is back", 600)
        await pod.until_ready()
        print(
            f"{workload} was killed under an answer of {LONG.max_tokens} tokens: it is back, the text whole"
        )


async def check_upgrade(release: Release) -> None:
    """Upgrade while clients stream: none sees an error or another text."""
    readers = []
    for number in range(READERS):
        for ask in (by_openai(release.http), by_grpc(release.grpc)):
            asked = replace(SHORT, seed=number)
            readers.append(Reader(ask, asked, await text_of(ask, asked)))
    done = asyncio.Event()
    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.read(done))
        rolled = await release.upgrade(UPGRADE)
        done.set()
    hold(rolled == list(WORKLOADS), f"only {rolled} were replaced")
    hold(release.cluster.api.count("patch", "pods") > 0, "the gateways have written no pod's deletion cost")
    answers = [reader.answers for reader in readers]
    hold(min(answers) > 0, f"clients had {answers} answers: too few to tell")
    print(
        f"replaced {', '.join(rolled)} in {time.monotonic() - begin:.0f} s; meanwhile {len(readers)} clients "
        f"had {sum(answers)} answers of {SHORT.max_tokens} tokens, none with an error or another text"
    )


async def check(engine: Engine) -> None:
    """Raises `CheckError`."""
    with tiny_model() as model:
        begin = time.monotonic()
        async with Release(engine, model) as release:
            print(f"played {len(WORKLOADS)} workloads of the chart in {time.monotonic() - begin:.0f} s")
            await check_tests(release)
            await check_model(release)
            await check_kills(release)
            await check_upgrade(release)


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make chart-check", description=__doc__)
    parser.parse_args(arguments)
    # What is told is read while it runs, also through a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    failures: list[Exception] = []
    try:
        asyncio.run(check(Engine(names=True)))
    except* (EngineError, CheckError) as errors:
        failures += errors.exceptions
    for each in failures:
        print(f"error: {each}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
