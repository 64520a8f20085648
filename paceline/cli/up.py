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
            help="A folder, a Hugging Face id, or a packaged model's name.",
            show_default="SmolLM2-135M-Instruct, fetched once",
        ),
    ] = None,
    verifiers: Annotated[
        int, typer.Option(min=1, max=64, help="Verifier processes; each holds the model.")
    ] = 1,
    drafters: Annotated[
        int, typer.Option(min=0, max=64, help="Drafter processes; with 0, decoding is plain.")
    ] = 1,
    drafter_method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="How drafters draft; `paceline drafter methods` lists the ways, joined by +.",
            show_default="lookup+recycling",
        ),
    ] = "",
    draft_model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Folder or Hugging Face id, for a --drafter-method with draft."),
    ] = "",
    host: Annotated[
        str,
        typer.Option(
            help="Address the gateway listens on; :: for all interfaces. Anybody who reaches it may use it."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.", show_default="port + 1"),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            metavar="URL",
            help="Use this Redis.",
            show_default="$REDIS_URL, else a private server is started",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the demonstration.")] = False,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="First show what speculation does.")] = True,
) -> None:
    """Run everything here: Redis, verifiers, drafters and the gateway, with a demonstration.

    Serves OpenAI's HTTP API and gRPC until Ctrl-C, which stops every process.
    """
    if once and not demo:
        fail("--once stops after the demonstration, which --no-demo leaves out: give one of them")
    logs = cache_folder() / "logs"
    # Only now: these bring gRPC and Redis, which `--help` does without.
    from paceline.addresses import AddressError, parse_host
    from paceline.cli.serving import UpError, UpOptions, serve
    from paceline.local.plan import Drafting, NotOurHostError, PortTakenError, choose_addresses

    found = resolve(model)
    try:
        addresses = choose_addresses(
            host=parse_host(host),
            http_port=port,
            grpc_port=grpc_port if grpc_port is not None else (port + 1 if 0 < port < 65535 else 0),
            verifiers=verifiers,
            drafters=drafters,
        )
    except PortTakenError as error:
        flag = "--port" if error.port == port else "--grpc-port"
        fail(f"{error}: choose another with {flag}, or 0 for any free one")
    except (AddressError, NotOurHostError) as error:
        fail(f"--host: {error}")
    try:
        status = serve(
            UpOptions(
                found,
                addresses,
                redis or redis_url(),
                logs=logs,
                once=once,
                demonstrate=demo,
                drafting=Drafting(drafter_method, draft_model),
            )
        )
    except UpError as error:
        fail(str(error))
    raise typer.Exit(status)
