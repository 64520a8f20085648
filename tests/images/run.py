"""`make images-check`: build the images and serve from them, as strictly as a cluster may; then stop it all.

No container runs as root, has a capability, or may write outside the volumes that its image declares.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from openai import APIError
from openai.types import Completion

from paceline.models.store import ModelError
from tests.images.build import IMAGES, SERVICES, build_all, image
from tests.images.checks import CheckError, default_model, hold, tiny_model
from tests.images.engine import Engine, EngineError
from tests.images.system import FROM_TEXT, WITH_HEAD, Drafting, System, accepted_by_source

USER = (10001, 10001)
# So many tokens that the answer is under way when all is told to end.
LONG = 1500
# Tokens of an answer that a head drafts for, and how long it may take to be loaded.
DRAFTED = 96
LOADING_SECONDS = 300.0
# What the head of the default model has something to say of.
QUESTION = "<|im_start|>user\nExplain how rain forms.<|im_end|>\n<|im_start|>assistant\n"


def check_answer(system: System) -> None:
    """Stream one answer, and see that drafters had a part in it."""
    pieces = list(system.stream("again and again and again", 64))
    hold(len(pieces) > 2, f"the answer came in {len(pieces)} pieces")
    last = next(piece for piece in reversed(pieces) if piece.usage)
    hold(last.usage is not None and last.usage.completion_tokens == 64, f"the answer has {last.usage}")
    print(f"streamed 64 tokens in {len(pieces)} pieces; the last one: {last.to_json(indent=None)}")


def check_head(system: System) -> None:
    """Let the head draft: the text is the one without drafters, and some of it the head has guessed."""

    def text(pieces: Iterable[Completion]) -> str:
        return "".join(choice.text for piece in pieces for choice in piece.choices)

    plain = text(system.stream(QUESTION, DRAFTED, drafted=False))
    accepted: dict[str, int] = {}
    # The first answers are drafted for from their text alone, until the head is loaded.
    end = time.monotonic() + LOADING_SECONDS
    while not accepted.get("eagle"):
        hold(time.monotonic() < end, f"of the head nothing was accepted: {accepted}")
        pieces = list(system.stream(QUESTION, DRAFTED))
        hold(text(pieces) == plain, "with the head drafting, the text was another one")
        accepted = accepted_by_source(pieces)
    print(f"{DRAFTED} tokens, the same as without drafters; accepted by source: {accepted}")


def check_users(system: System) -> None:
    """See that no process is anybody."""
    for name, container in system.containers.items():
        hold(container.user == USER, f"{name} runs as {container.user}")
    print(f"all run as user and group {USER[0]}, read-only, without capabilities")


def check_drain(system: System) -> None:
    """Tell all services to end at once: the answer under way is finished, and each exits with 0."""
    stream = iter(system.stream("again and again and again", LONG))
    pieces = [next(stream) for _ in range(5)]
    for service in SERVICES:
        system.containers[service].terminate()
    try:
        pieces += stream
    except APIError as error:
        logs = "\n".join(f"{name}:\n{each.log[-2000:]}" for name, each in system.containers.items())
        raise CheckError(f"the answer broke off: {error}\n{logs}") from error
    usage = pieces[-1].usage
    hold(usage is not None and usage.completion_tokens == LONG, f"the answer was cut: {usage}")
    for service in SERVICES:
        code = system.containers[service].wait()
        hold(code == 0, f"{service} ended with {code}:\n{system.containers[service].log[-2000:]}")
    print(f"told to end, they finished an answer of {LONG} tokens, and ended with 0")


def print_sizes(engine: Engine) -> None:
    """Print the images' sizes; the gateway's has a bound."""
    for name in IMAGES:
        size = int(engine.call("image", "inspect", "--format", "{{.Size}}", image(name)))
        print(f"{image(name)}: {size / 1e6:.0f} MB")
        hold(name != "gateway" or size < 400e6, "the gateway's image is larger than 400 MB")
    first, second = (layers(engine, name) for name in ("neural-drafter", "verifier"))
    shared = len(first & second)
    hold(shared > 1, "the images that run models share none of their packages")
    print(f"neural-drafter and verifier share {shared} of {len(first)} and {len(second)} layers")


def layers(engine: Engine, name: str) -> set[str]:
    """The digests of an image's layers."""
    found = json.loads(engine.call("image", "inspect", image(name)))
    return set(found[0]["RootFS"]["Layers"])


def serve(engine: Engine, model: Path, drafting: Drafting, *checks: Callable[[System], None]) -> None:
    """Start a system, check it, and take it away."""
    system = System(engine, model, drafting)
    try:
        system.start()
        for check in checks:
            check(system)
    finally:
        system.remove()


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make images-check", description=__doc__)
    parser.add_argument("--base", help="image to build from; without it a bare Debian is made here, once")
    parser.add_argument("--built", action="store_true", help="take the images as they are")
    options = parser.parse_args(arguments)
    try:
        engine = Engine()
        if not options.built:
            build_all(engine, options.base)
        with tiny_model() as model:
            serve(engine, model, FROM_TEXT, check_users, check_answer, check_drain)
        with default_model() as model:
            serve(engine, model, WITH_HEAD, check_users, check_head, check_drain)
        print_sizes(engine)
    except (EngineError, CheckError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
