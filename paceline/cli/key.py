"""`paceline key`: make API keys for a gateway's `--api-keys-file`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from paceline.api_keys import Scope, api_key_hash, new_api_key
from paceline.cli.console import err, out

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.command()
def create(
    id: Annotated[str, typer.Argument(help="Name of the key's holder, for logs and metrics.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeat for several.", show_default="generate")
    ] = None,
) -> None:
    """Print a new key once, on stderr, and its entry for the key file on stdout.

    To rotate a key, add the new entry's hash to the old entry's list, and take the old hash out once
    nobody uses it any more.
    """
    key = new_api_key()
    err.print(f"key (keep it; it is not shown again): {key}")
    entry = {"id": id, "sha256": [api_key_hash(key)], "scopes": scope or [Scope.GENERATE]}
    out.file.write(json.dumps(entry) + "\n")
