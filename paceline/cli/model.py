"""`paceline model`: fetch, convert and find models."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Annotated

import typer

from paceline.cli.console import cache_folder, err, fail, out
from paceline.models.store import LocalModel, ModelError, ModelStore

app = typer.Typer(help="Fetch, convert and list models.", no_args_is_help=True)

_Model = Annotated[
    str | None,
    typer.Argument(help="A folder, a Hugging Face id, or a packaged model's name; the default when missing."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Dtype(StrEnum):
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def resolve(model: str | None) -> LocalModel:
    """Find or make the model with its progress shown; exit with 1 and the reason when that fails."""
    store = ModelStore(cache_folder())
    begin = time.monotonic()
    stages = 0
    with err.status("looking for the model") as spinner:

        def progress(stage: str) -> None:
            nonlocal stages
            stages += 1
            err.print(f"  [dim]{time.monotonic() - begin:5.1f} s[/dim]  {stage}")
            spinner.update(stage)

        try:
            found = store.resolve(model, progress)
        except ModelError as error:
            fail(str(error))
    if stages:
        err.print(f"  [dim]{time.monotonic() - begin:5.1f} s[/dim]  model ready in {found.folder}")
    return found


@app.command()
def fetch(model: _Model = None, as_json: _Json = False) -> None:
    """Fetch and convert a model, so that a later start finds it ready."""
    found = resolve(model)
    if as_json:
        out.file.write(json.dumps(_fields(found)) + "\n")
    else:
        out.print(f"{found.name}: {found.folder}")


@app.command()
def path(model: _Model = None) -> None:
    """Print the folder of a model, fetching it first where needed."""
    out.file.write(f"{resolve(model).folder}\n")


@app.command()
def check(
    model: _Model = None,
    dtype: Annotated[
        _Dtype,
        typer.Option(
            help="Number type of the weights. auto is the checkpoint's own; float32 finds the most faults."
        ),
    ] = _Dtype.AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    longest: Annotated[
        int,
        typer.Option(
            min=64,
            help="Positions of the longest text that is tried. A window longer than this is not tried.",
        ),
    ] = 1024,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python that comes with the model.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Say whether the engine serves a model as transformers computes it; exit with 1 where it does not."""
    from paceline.models.check import run

    report = run(
        resolve(model).folder,
        dtype=dtype,
        device=device,
        longest=longest,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        out.file.write(json.dumps(report) + "\n")
    else:
        for case in report["cases"]:
            said = "ok" if case["ok"] else "DIFFERS"
            out.print(
                f"{said:8}{case['what']}: by {case['difference']:.1e} (rounding: {case['tolerance']:.1e})"
            )
        if report["window_beyond"]:
            out.print(
                f"a window of {report['window_beyond']} positions was not reached: "
                f"`--longest {report['window_beyond'] + 16}` does"
            )
        if report["served"]:
            out.print(f"served; exact={report['exact']}")
        else:
            err.print(f"refused: {report['reason']}", markup=False)
    if not report["served"]:
        raise typer.Exit(1)


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List the packaged models and whether they are ready on this machine."""
    store = ModelStore(cache_folder())
    rows = [
        {
            "name": packaged.name,
            "source": packaged.source,
            "licence": packaged.licence,
            "ready": store.is_ready(packaged),
            "default": packaged is store.packaged[0],
            "folder": str(store.folder(packaged)),
        }
        for packaged in store.packaged
    ]
    if as_json:
        out.file.write(json.dumps(rows) + "\n")
        return
    for row in rows:
        state = f"ready in {row['folder']}" if row["ready"] else "not fetched yet (`paceline model fetch`)"
        name = f"{row['name']} (default)" if row["default"] else row["name"]
        out.print(f"{name}: {state}; {row['source']}, {row['licence']}")
    out.print("Any folder or Hugging Face id of a decoder model works too: `paceline up --model NAME`.")


def _fields(model: LocalModel) -> dict[str, str]:
    return {"name": model.name, "folder": str(model.folder), "source": model.source}
