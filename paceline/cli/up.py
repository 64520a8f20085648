"""`paceline up`: a whole fleet on this machine, a demonstration, then service until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline.cli.console import cache_folder, fail, redis_url
from paceline.cli.model import resolve


def up(
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, a Hugging Face id, or a packaged model's name. "
            "[default: SmolLM2-135M-Instruct, fetched once]"
        ),
    ] = None,
    verifiers: Annotated[
        int, typer.Option(min=1, max=64, help="Verifier processes; each holds the model.")
    ] = 1,
    drafters: Annotated[int, typer.Option(min=0, max=64, help="Drafter processes; 0 decodes plainly.")] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one. [default: port + 1]")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            metavar="URL",
            help="Use this Redis. [default: $REDIS_URL, else a private server is started]",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the demonstration.")] = False,
) -> None:
    """Run everything here: Redis, verifiers, drafters and the gateway, with a demonstration.

    Serves OpenAI's HTTP API and gRPC on the loopback interface until Ctrl-C, which stops every process.
    """
    found = resolve(model)
    # Only now: these bring gRPC and Redis, which `--help` and the error paths above do without.
    from paceline.cli.serving import UpFailed, UpOptions, serve
    from paceline.local_plan import PortTaken, choose_addresses

    try:
        addresses = choose_addresses(
            http_port=port,
            grpc_port=grpc_port if grpc_port is not None else (port + 1 if 0 < port < 65535 else 0),
            verifiers=verifiers,
            drafters=drafters,
        )
    except PortTaken as error:
        flag = "--port" if error.port == port else "--grpc-port"
        fail(f"{error}: choose another with {flag}, or 0 for any free one")
    try:
        status = serve(
            UpOptions(found, addresses, redis or redis_url(), logs=cache_folder() / "logs", once=once)
        )
    except UpFailed as error:
        fail(str(error))
    raise typer.Exit(status)
