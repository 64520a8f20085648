"""A verifier that keeps states serves what one serves that keeps none, and says what they take."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from paceline.client import Chunk, Generation, SyncGatewayClient
from tests.pods import Pods

# Texts of more than a block that part within one, and one that goes on where the first has ended.
BEGINNING = random.Random(3).choices(range(10, 250), k=200)
ASKED = [
    Generation(ids=[*BEGINNING, *more], max_tokens=60, ignore_eos=True, temperature=temperature, seed=4)
    for more, temperature in (([5, 6], 0.0), ([7, 8, 9], 0.8), (list(range(10, 40)), 0.0), ([5, 6], 0.8))
]


def _hits(pods: Pods) -> float:
    """Positions that sessions have found in the verifier's prefix cache."""
    with urlopen(f"http://127.0.0.1:{pods.metrics_ports[pods.verifier]}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(
        float(line.split()[1]) for line in lines if line.startswith("paceline:prefix_cache_hits_total")
    )


def _served(pods: Pods) -> tuple[list[list[int]], float]:
    """The texts, one after the other, and the prefix hits they had."""
    with SyncGatewayClient(pods.grpc) as client:
        texts = [
            [
                token
                for event in client.generate(asked)
                if isinstance(event, Chunk)
                for token in event.token_ids
            ]
            for asked in ASKED
        ]
    return texts, _hits(pods)


def test_texts_and_prefix_hits_are_the_same(tmp_path: Path, tiny_model: Path, redis_url: str) -> None:
    plain, keeping = tmp_path / "plain", tmp_path / "keeping"
    for folder in (plain, keeping):
        folder.mkdir()
    with Pods(plain, tiny_model, redis_url, metrics=True) as pods:
        expected, hits = _served(pods.start())
    assert hits > 0
    flags = ("--keep-states", "0,1,2")
    with Pods(keeping, tiny_model, redis_url, metrics=True, verifier_flags=flags) as pods:
        assert _served(pods.start()) == (expected, hits)
        log = pods.pods[pods.verifier].log.read_text()
    # Three layers of 64 numbers in float32; keys and values of two layers, two heads of 16 each.
    assert "kept_states=0,1,2" in log
    assert f"state_bytes_per_token={3 * 64 * 4}" in log
    assert f"kv_bytes_per_token={2 * 2 * 2 * 16 * 4}" in log
    assert "states_of_kv=150.0%" in log


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("two", "--keep-states (PACELINE_VERIFIER_KEEP_STATES): give numbers of layers with commas"),
        ("0,1,2,3,4,5,6,7,8", "at most 8 layers can be kept"),
        (
            "1,3",
            "--keep-states 1,3: states of layer 3 cannot be kept: this model's are 0 (the embeddings') to 2",
        ),
        ("eagle", "this model has 2: give numbers of layers instead"),
    ],
)
def test_layers_that_cannot_be_kept_are_said_at_the_start(layers: str, said: str, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "verifier_svc", "--port", "0", "--model", str(tiny_model)]
    ran = subprocess.run([*command, "--keep-states", layers], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
