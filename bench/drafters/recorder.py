"""A process that replays texts to methods, times them and keeps their trees: `recorder JOB OUT`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import results
from bench.drafters.recorded import Recorded, Source, place
from bench.drafters.recordings import Job
from bench.drafting import DraftingMethods, Origin, made
from bench.recording import Target
from bench.replay import Answers, Tally, simulate
from bench.states import States
from drafter_svc.config import DrafterSettings
from paceline.engine.model import choose_device
from paceline.tree import TokenTree

# As in the drafter's settings.
_DEPTH: int = DrafterSettings.model_fields["tree_depth"].default


@dataclass(slots=True)
class _Keeper:
    """Keeps the trees of each method of the first texts."""

    kept: int
    trees: list[dict[str, TokenTree]]

    def drafted(self, prompt: int, ids: Sequence[int], trees: Sequence[TokenTree]) -> None:
        """See `Witness`."""
        if prompt < self.kept:
            for known, tree in zip(self.trees, trees, strict=True):
                known[place(ids)] = tree


class _Recorder:
    """One job, whose methods share a target and what it has answered."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job = job
        self._folder = folder
        self._target = Target(Path(job.model))
        self.prompts = [self._target.prompt(text.turn, chat=job.chat) for text in job.texts]
        recordings = [
            self._target.known(text.task, prompt, text.answer)
            for prompt, text in zip(self.prompts, job.texts, strict=True)
        ]
        self._answers = Answers(lambda: self._target, recordings)
        self._following = {
            place((*each.prompt, *each.text[:length])): each.text[length]
            for each in recordings[: job.kept]
            for length in range(len(each.text))
        }

    def record(self, method: str) -> dict[str, Any]:
        """Acceptance lengths and sources of one method. Raises what `bench.drafting.made` raises."""
        job = self._job
        drafting = self._made(method)
        keeper = _Keeper(job.kept, [{} for _ in drafting.methods])
        tallies = {job.nodes: self._simulate(drafting, job.nodes, keeper, None)}
        for nodes in {*job.sizes, *job.timed} - {job.nodes}:
            texts = None if nodes in job.sizes else job.kept
            tallies[nodes] = self._simulate(self._made(method), nodes, None, texts)
        return {
            "replay": {str(nodes): _lengths(tallies[nodes]) for nodes in job.sizes},
            "sources": [
                asdict(self._source(method, number, origin, keeper, tallies))
                for number, origin in enumerate(drafting.origins)
            ],
        }

    def _made(self, method: str) -> DraftingMethods:
        job = self._job
        settings = DrafterSettings.model_validate(
            {"method": method, "model": job.model, "draft_model": job.draft_model, "threads": job.threads}
        )
        return made(
            settings, width=self._target.width, vocab_size=self._target.vocab_size, tables=True, tenants=1
        )

    def _simulate(
        self, drafting: DraftingMethods, nodes: int, keeper: _Keeper | None, texts: int | None
    ) -> Tally:
        states = States(self._target, drafting.layers) if drafting.layers else None
        return simulate(drafting, self._answers, nodes, _DEPTH, states=states, witness=keeper, texts=texts)

    def _source(
        self, method: str, number: int, origin: Origin, keeper: _Keeper, tallies: Mapping[int, Tally]
    ) -> Source:
        path = self._folder / f"{method.replace('+', '-')}.{origin.name}.jsonl"
        Recorded(keeper.trees[number], self._following).write(path)
        times = {
            nodes: sorted(seconds[number] for seconds in tally.method_seconds)
            for nodes, tally in sorted(tallies.items())
        }
        want = next(iter(origin.needs.features), None)
        return Source(
            origin.name,
            origin.computes,
            tuple(
                (nodes, seconds[len(seconds) // 2], seconds[int(0.95 * len(seconds))])
                for nodes, seconds in times.items()
                if seconds
            ),
            str(path),
            origin.needs.feedback_top_k,
            want.layers if want is not None else (),
            want.weights_fingerprint if want is not None else "",
        )


def _lengths(tally: Tally) -> dict[str, Any]:
    by_task = {task: round(tally.length(task), 3) for task in tally.steps}
    return {"acceptance_length": round(tally.length(), 3), "by_task": by_task}


def main() -> None:
    """Read the job, carry it out, write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    job = Job.of(json.loads(given.job.read_text(encoding="utf-8")))
    torch.set_num_threads(job.threads)
    recorder = _Recorder(job, given.out.parent)
    made = {
        "device": _device(),
        "prompts": recorder.prompts,
        "methods": {method: recorder.record(method) for method in job.methods},
    }
    given.out.write_text(json.dumps(made), encoding="utf-8")


def _device() -> str:
    device = choose_device("auto")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{results.cpu_model()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
