"""`paceline generate`: stream one answer, coloured by who wrote each token."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import DRAFTED, err, fail, out, stream
from paceline.cli.gateway import DEFAULT_GATEWAY, Ca, Gateway, Tls, connected

if TYPE_CHECKING:
    from paceline.cli.receipt import Measured
    from paceline.client import Generation, SyncGatewayClient


def generate(
    prompt: Annotated[str, typer.Argument(help='What to ask; "-" reads it from standard input.')],
    gateway: Gateway = DEFAULT_GATEWAY,
    tls: Tls = False,
    ca: Ca = None,
    model: Annotated[str, typer.Option(help="Model id; may be left out where one model is served.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="0 takes the most likely token each time.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same text; random when missing.")
    ] = None,
    speculation: Annotated[
        bool, typer.Option(help="Let drafters help; the text is the same without them.")
    ] = True,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is: no chat template.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Stream one answer; tokens that a drafter guessed are green. Needs a running fleet (`paceline up`)."""
    from paceline.client import ChatMessage, Generation

    text = _read_stdin() if prompt == "-" else prompt
    if not text.strip():
        fail("the prompt is empty")
    generation = Generation(
        text=text if raw else None,
        chat=() if raw else (ChatMessage("user", text),),
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        speculation=speculation,
    )
    measured = _run(connected(gateway, tls=tls, ca=ca), generation, quiet=as_json)
    if as_json:
        out.file.write(json.dumps(measured.to_json()) + "\n")
        return
    stream("\n", "")
    err.print(f"[dim]{measured.summary()}[/dim]")
    if out.is_terminal and measured.receipt.accepted_tokens:
        err.print(
            f"[dim]in [/dim][{DRAFTED}]this colour[/{DRAFTED}][dim]: guessed by a drafter, verified[/dim]"
        )


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        fail(f"standard input is not UTF-8 text: {error}")


def _run(
    connection: AbstractContextManager[SyncGatewayClient], generation: Generation, *, quiet: bool
) -> Measured:
    from paceline.cli.receipt import Recorder

    recorder = Recorder(None if quiet else stream)
    try:
        with connection as client:
            for event in client.generate(generation):
                recorder.add(event)
    except KeyboardInterrupt:
        stream("\n", "")
        raise typer.Exit(130) from None
    measured = recorder.measured()
    if measured is None:
        fail("the gateway ended the stream before the text was finished")
    return measured
