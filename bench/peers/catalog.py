"""The servers that are compared, each started as its own documentation says for this kind of machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.arms import Arm, transformers_arm
from bench.peers import (
    BATCHED,
    LLAMA,
    LLAMA_BF16,
    LLAMA_BF16_NGRAM,
    LLAMA_NGRAM,
    LOOKUP,
    TRANSFORMERS,
    VLLM,
    VLLM_NGRAM,
    processes,
)
from bench.peers.http import http_arm
from bench.peers.install import Peers
from bench.system import Plan, Progress
from paceline.local.plan import HOST, choose_addresses
from paceline.local.process import LocalProcess, Service
from paceline.models.store import LocalModel
from paceline.net.readiness import http_ok

# transformers' documentation guesses so many.
_LOOKUP_TOKENS = 10
_VLLM_NGRAM = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
_LLAMA_NGRAM = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3")
_START_S = 300.0
_GRACE_S = 8.0


class MissingError(Exception):
    """This machine does not have a peer; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One arm, and the process session to wake for it; None where it never sleeps."""

    name: str
    arm: Arm
    session: int | None = None
    # Sessions that it answers at once; the others wait.
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """What all peers are started with. `context`: tokens of the longest prompt and its answer."""

    plan: Plan
    peers: Peers
    sessions: int
    context: int
    ids: Mapping[str, Sequence[int]]


def enter(name: str, field: Field, progress: Progress) -> AbstractAsyncContextManager[Contestant]:
    """A peer that runs, asleep, until the block is left.

    Raises `MissingError` where it is not installed; `BenchError` and `ServiceDiedError` where it does not
    start.
    """
    makers: Mapping[str, Callable[[], AbstractAsyncContextManager[Contestant]]] = {
        TRANSFORMERS: lambda: _transformers(name, field, progress, most=1),
        LOOKUP: lambda: _transformers(name, field, progress, "--lookup", str(_LOOKUP_TOKENS), most=1),
        BATCHED: lambda: _transformers(
            *(name, field, progress),
            *("--sessions", str(field.sessions), "--context", str(field.context)),
        ),
        VLLM: lambda: _vllm(name, field, progress),
        VLLM_NGRAM: lambda: _vllm(name, field, progress, "--speculative-config", json.dumps(_VLLM_NGRAM)),
        LLAMA: lambda: _llama(name, field, progress, field.peers.quantised),
        LLAMA_NGRAM: lambda: _llama(name, field, progress, field.peers.quantised, *_LLAMA_NGRAM),
        LLAMA_BF16: lambda: _llama(name, field, progress, field.peers.bfloat16),
        LLAMA_BF16_NGRAM: lambda: _llama(name, field, progress, field.peers.bfloat16, *_LLAMA_NGRAM),
    }
    return makers[name]()


@asynccontextmanager
async def _transformers(
    name: str, field: Field, progress: Progress, *flags: str, most: int | None = None
) -> AsyncIterator[Contestant]:
    async with transformers_arm(field.plan, progress, *flags, name=name) as arm:
        processes.stop(arm.pid)
        yield Contestant(name, arm, arm.pid, most)


def _vllm(
    name: str, field: Field, progress: Progress, *flags: str
) -> AbstractAsyncContextManager[Contestant]:
    if not field.peers.vllm.installed:
        raise MissingError("not installed: make peers")
    plan = field.plan
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # What it compiles, a minute's work, serves the next run too.
        "VLLM_CACHE_ROOT": str(field.peers.root / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(plan.threads),
        "LD_PRELOAD": str(field.peers.vllm.openmp),
        # It finds no other address on machines without a network.
        "VLLM_HOST_IP": HOST,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [str(field.peers.vllm.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(plan.model.folder), "--served-model-name", plan.model.name]
    command += ["--dtype", plan.dtype, "--max-model-len", str(field.context)]
    command += ["--max-num-seqs", str(field.sessions), "--no-enable-prefix-caching", *flags]
    return _server(name, field, progress, environment, command)


def _llama(
    name: str,
    field: Field,
    progress: Progress,
    weights: Callable[[LocalModel], Path | None],
    *flags: str,
) -> AbstractAsyncContextManager[Contestant]:
    if not field.peers.llama_cpp.installed:
        raise MissingError("not installed: make peers")
    plan = field.plan
    file = weights(plan.model)
    if file is None or not file.is_file():
        raise MissingError(f"no GGUF of {plan.model.name}")
    server = field.peers.server
    command = [str(server), "--model", str(file), "--threads", str(plan.threads), "--gpu-layers", "0"]
    command += ["--parallel", str(field.sessions), "--ctx-size", str(field.sessions * field.context)]
    command += ["--no-cache-prompt", "--cache-ram", "0", "--slot-prompt-similarity", "0", "--no-ui", *flags]
    environment = {
        "LD_LIBRARY_PATH": str(server.parent),
        "LD_PRELOAD": str(field.peers.llama_cpp.openmp),
    }
    return _server(name, field, progress, environment, command)


@asynccontextmanager
async def _server(
    name: str,
    field: Field,
    progress: Progress,
    environment: Mapping[str, str],
    command: Sequence[str],
) -> AsyncIterator[Contestant]:
    """Start a server of OpenAI's API, put it to sleep, and end it when the block is left."""
    progress(f"starting: {name}")
    port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port
    url = f"http://{HOST}:{port}"
    assigned = [f"{key}={value}" for key, value in environment.items()]
    service = Service(
        name,
        ("env", *assigned, *command, "--host", HOST, "--port", str(port)),
        partial(http_ok, f"{url}/health"),
        _START_S,
    )
    process = await LocalProcess.start(service, field.plan.logs / f"{name}.log")
    try:
        await process.until_ready()
        async with http_arm(url, field.plan.model.name, field.ids) as arm:
            processes.stop(process.pid)
            yield Contestant(name, arm, process.pid)
    finally:
        processes.wake(process.pid)
        await process.stop(_GRACE_S)
