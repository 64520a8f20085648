"""One rank: the leader prints each model's texts and states. `torchrun ... -m tests.rank FOLDER...`"""

from __future__ import annotations

import json
import sys

import torch

from bench.engine_loop import EngineLoop, Running, generate
from paceline.engine.blocks import BlockAllocator
from paceline.engine.engine import Engine
from paceline.engine.model import Decoder, load_weights
from paceline.engine.parallel import Ranks, engine_of, follow
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree

COUNT = 32
BLOCKS = 4
# Layers whose states are kept: the first's input, and what the last gives.
KEPT = (0, 2)
# Right or wrong, trees put rows of theirs beside the root.
TREE = TokenTree((7, 8, 9), (-1, -1, 0), (-1.0,) * 3)


def texts(engine: Engine) -> tuple[list[list[int]], list[float]]:
    """Greedy texts of a short prompt and a longer one, in one batch; the longer one's kept states, flat."""
    prompts = [[5, 6, 7, 9], [5, 6, 7, 9] * 9]
    sessions = [Running(prompt, len(prompt), SamplingParams(max_tokens=COUNT)) for prompt in prompts]
    loop = EngineLoop(engine, BlockAllocator(engine.blocks, engine.block_size))
    made = generate(loop, sessions, COUNT, lambda session: TREE)
    last = sessions[-1]
    states = engine.read_states(last.blocks, 0, len(prompts[-1]) + COUNT - 1, engine.kept_layers)
    return made, states.flatten().tolist()


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.launched()
    device = ranks.join(torch.device("cpu"))
    for folder in folders:
        model, shape, _ = load_weights(folder, device=device, dtype=torch.float32, ranks=ranks.size)
        engine = engine_of(Decoder(model, shape, device), BLOCKS, ranks, KEPT)
        if ranks.leads:
            print(json.dumps(texts(engine)), flush=True)
            ranks.end()
        else:
            follow(ranks, engine)


if __name__ == "__main__":
    main(sys.argv[1:])
