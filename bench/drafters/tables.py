"""The tables that `paceline bench drafters` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.drafters.rows import Arrangement

_SERVED = (
    "Each question once with drafts and once without, in turns, one session at a time, in a fleet of the "
    "row's own. Verifier ms/token: seconds of the engine in steps over committed tokens, prompts included, "
    "waits excluded; plain's in brackets. Drafter ms/token: its process's processor time. In `split` the "
    "verifier has half of the cores and everything else the other half, with drafts and without. Bytes are "
    "those of messages on the drafter's stream, up from it and down to it."
)
_METHODS = (
    "Acceptance lengths by replay, with exact feedback and shipped tables. Draft ms: from a verdict to the "
    "tree, on the device named below."
)
_PACED = (
    "Recorded trees from a drafter that sleeps, behind a proxy with this round trip; - is the real drafter "
    "without either. Synchronous, cached and pushed drafting by closed forms: tokens/s behind the first "
    "token, as in the column before. The ratio is to synchronous drafting, ahead to pushed drafting."
)
_FORMS = ("synchronous", "cached", "pushed")


def tables(document: Mapping[str, Any]) -> RenderableType:
    """What was measured, a table for each kind, and under which conditions."""
    parts: list[RenderableType] = []
    rows = document["rows"]
    if any(arrangement in row for row in rows for arrangement in Arrangement):
        parts.append(_served(rows))
    parts.append(_methods(rows))
    if any("paced" in row for row in rows):
        parts.append(_paced(rows))
    return Group(*parts, Text(_conditions(document)))


def _table(caption: str, *headers: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    made.add_column("drafter", no_wrap=True)
    for header in headers:
        made.add_column(header, justify="right")
    return made


def _served(rows: list[dict[str, Any]]) -> Table:
    arrangements = [each for each in Arrangement if any(each in row for row in rows)]
    speeds = [header for each in arrangements for header in (f"{each}\ntok/s", "x plain")]
    headers = ("T", "L", "nodes", "verifier\nms/token", "drafter\nms/token", "B/token\nup", "down")
    made = _table(_SERVED, *headers, *speeds, "identical")
    for row in rows:
        there = [row[each] for each in arrangements if each in row]
        for temperature in there[0] if there else ():
            made.add_row(row["row"], temperature, *_served_cells([each[temperature] for each in there]))
    return made


def _served_cells(figures: list[dict[str, Any]]) -> list[str]:
    """Of the first arrangement, but for speeds."""
    one = figures[0]
    return [
        f"{one['acceptance_length']:.2f}",
        f"{one['nodes_per_step']:.1f}",
        f"{one['verifier_ms_per_token']:.1f} ({one['plain_verifier_ms_per_token']:.1f})",
        f"{one['drafter_ms_per_token']:.2f}",
        f"{one['bytes_up_per_token']:.0f}",
        f"{one['bytes_down_per_token']:.0f}",
        *(
            cell
            for each in figures
            for cell in (f"{each['tokens_per_second']:.1f}", f"{each['over_plain']:.2f}")
        ),
        f"{sum(each['identical'] for each in figures)}/{sum(each['prompts'] for each in figures)}",
    ]


def _methods(rows: list[dict[str, Any]]) -> Table:
    sizes = list(dict.fromkeys(size for row in rows for size in row.get("replay", ())))
    lengths = [f"L\n{size} nodes" for size in sizes]
    made = _table(_METHODS, *lengths, "draft ms, median (p95)", "parameters", "training\nminutes")
    for row in rows:
        replay = row.get("replay", {})
        minutes = row["training_minutes"]
        made.add_row(
            row["row"],
            *(f"{replay[size]['acceptance_length']:.2f}" if size in replay else "" for size in sizes),
            "\n".join(
                f"{source}, {nodes} nodes: {each['median']:.2f} ({each['p95']:.2f})"
                for source, times in row.get("draft_ms", {}).items()
                for nodes, each in times.items()
            ),
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "",
            "" if minutes is None else f"{minutes:g}",
        )
    return made


def _paced(rows: list[dict[str, Any]]) -> Table:
    headers = ("ahead", "round trip\nms", "paced\ntok/s", "x plain", "L", "identical", "behind the\nfirst")
    made = _table(_PACED, *headers, *_FORMS, "paced /\nformula")
    for row in rows:
        paced = row.get("paced", {})
        if "same_as" in paced:
            made.add_row(f"{row['row']}: as {paced['same_as']}")
        elif paced:
            made.add_row(row["row"], "", "plain", f"{paced['plain_tokens_per_second']:.1f}", "1.00")
            made.add_row("", "no", "-", *_paced_cells(paced["split"], paced["prompts"]))
            for each in paced["paced"]:
                ahead = "yes" if each["ahead"] else "no"
                made.add_row("", ahead, f"{each['round_trip_ms']:g}", *_paced_cells(each, paced["prompts"]))
            made.add_row(f"  0 ms over -: {paced['paced_over_split']:.2f}")
    return made


def _paced_cells(each: Mapping[str, Any], prompts: int) -> list[str]:
    cells = [
        f"{each['tokens_per_second']:.1f}",
        f"{each['over_plain']:.2f}",
        f"{each['acceptance_length']:.2f}",
        f"{each['identical']}/{prompts}",
        f"{each['decode_tokens_per_second']:.1f}",
    ]
    if each.get("formula"):
        cells += [f"{each['formula'][form]:.1f}" for form in _FORMS]
        cells.append(f"{each['over_formula']:.2f}")
    return cells


def _conditions(document: Mapping[str, Any]) -> str:
    machine, config = document["machine"], document["config"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {config['dtype']}; load {config['load_before']} before "
        f"and {config['load_after']} after; {document['date']}, commit {document['commit'] or '(none)'}",
        f"{config['model']}: weights {document['target']['weights_fingerprint']}",
        f"{config['prompts']} prompts, {config['max_tokens']} tokens, greedy; {config['sampled_prompts']} at "
        f"temperature {config['temperature']:g}; paced: {config['paced_prompts']} prompts, "
        f"{config['paced_tokens']} tokens, greedy",
    ]
    if "draft_device" in document:
        lines.append(f"draft times on {document['draft_device']}")
    hashes = {
        f"{name} {digest[:16]}"
        for each in (document["target"], *document["rows"])
        for name, digest in each["weights_sha256"].items()
    }
    lines.append(f"SHA-256: {', '.join(sorted(hashes))}")
    return "\n".join(lines)
