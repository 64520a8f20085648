"""`make images-check`: build the images and serve from them, as strictly as a cluster may; then stop it all.

No container runs as root, has a capability, or may write outside the volumes that its image declares.
"""

from __future__ import annotations

import argparse
import sys

from openai import APIError

from tests.images.build import SERVICES, build_all, image
from tests.images.checks import CheckError, hold, tiny_model
from tests.images.engine import Engine, EngineError
from tests.images.system import System

USER = (10001, 10001)
# So many tokens that the answer is under way when all is told to end.
LONG = 1500


def check_answer(system: System) -> None:
    """Stream one answer, and see that drafters had a part in it."""
    pieces = list(system.stream("again and again and again", 64))
    hold(len(pieces) > 2, f"the answer came in {len(pieces)} pieces")
    last = next(piece for piece in reversed(pieces) if piece.usage)
    hold(last.usage is not None and last.usage.completion_tokens == 64, f"the answer has {last.usage}")
    print(f"streamed 64 tokens in {len(pieces)} pieces; the last one: {last.to_json(indent=None)}")


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
    for service in SERVICES:
        size = int(engine.call("image", "inspect", "--format", "{{.Size}}", image(service)))
        print(f"{image(service)}: {size / 1e6:.0f} MB")
        hold(service != "gateway" or size < 400e6, "the gateway's image is larger than 400 MB")


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make images-check", description=__doc__)
    parser.add_argument("--base", help="image to build from; without it a bare Debian is made here, once")
    parser.add_argument("--built", action="store_true", help="take the images as they are")
    options = parser.parse_args(arguments)
    with tiny_model() as model:
        try:
            engine = Engine()
            if not options.built:
                build_all(engine, options.base)
            system = System(engine, model)
            try:
                system.start()
                check_users(system)
                check_answer(system)
                check_drain(system)
            finally:
                system.remove()
            print_sizes(engine)
        except (EngineError, CheckError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
