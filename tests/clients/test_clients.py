"""Clients that nobody here wrote, unmodified, against one running fleet with the settings that users have.

Each chat client asks QUESTION whole and streamed, and sends the answer back, as its own kind of message, with
AND. What it gets must be what plain JSON gets. What a benchmark counts must be what it asked for.
Clients that do not install in seconds are tried by `make clients` only (`--all-clients`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bench.peers.install import peers
from paceline.client import Chunk, Finished, Generation, SyncGatewayClient
from paceline.session import FinishReason
from tests.clients.environments import FOLDER, node_with, python_with
from tests.pods import MODEL, Pods

QUESTION: Any = {"role": "user", "content": "hello world"}
AND: Any = {"role": "user", "content": "and?"}
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "temperature": 0}
# What each benchmark asks for.
REQUESTS, PROMPT_TOKENS, TOKENS = 8, 32, 16


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("fleet")
    with Pods(folder, tiny_model, redis_url, default_settings=True) as pods:
        yield pods.start()


@pytest.fixture
def base_url(fleet: Pods) -> str:
    return f"{fleet.http}/v1"


@pytest.fixture
def slow_to_install(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all-clients"):
        pytest.skip("`make clients` tries it")


def said(base_url: str, *messages: dict[str, Any]) -> str:
    """The answer to a chat by plain JSON."""
    answer = httpx.post(f"{base_url}/chat/completions", json={**ASKED, "messages": messages}, timeout=60)
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


def run(command: Sequence[str | Path], folder: Path | None = None, **environment: str) -> str:
    """What a client prints that has ended well."""
    alone = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none"}
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **alone, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-6000:]
    return ran.stdout


def assert_converses(command: Sequence[str | Path], base_url: str) -> None:
    """A client's two turns are those of plain JSON."""
    heard = json.loads(run([*command, base_url, MODEL]).splitlines()[-1])
    whole = said(base_url, QUESTION)
    assert heard["whole"] == heard["streamed"] == whole
    assert heard["second"] == said(base_url, QUESTION, {"role": "assistant", "content": whole}, AND)


# Chat clients.


@pytest.mark.parametrize("sent_back", ["as it is", "as a dictionary"])
def test_the_official_sdk_for_python(base_url: str, sent_back: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**ASKED, messages=[QUESTION])
        whole = raw.parse()
        assert raw.headers["x-request-id"] == raw.request_id
        message: Any = whole.choices[0].message
        if sent_back == "as a dictionary":
            message = message.model_dump()
        second = client.chat.completions.create(**ASKED, messages=[QUESTION, message, AND])
        options: Any = {"include_usage": True}
        stream = client.chat.completions.create(
            **ASKED, messages=[QUESTION], stream=True, stream_options=options
        )
        chunks = list(stream)
        drawn = client.chat.completions.create(**{**ASKED, "temperature": 1}, messages=[QUESTION])
        seed = drawn.model_dump()["paceline"]["seed"]
        again = client.chat.completions.create(**{**ASKED, "temperature": 1}, messages=[QUESTION], seed=seed)
    text = said(base_url, QUESTION)
    assert whole.choices[0].message.content == text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert whole.usage
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert second.choices[0].message.content == said(
        base_url, QUESTION, {"role": "assistant", "content": text}, AND
    )
    assert again.choices[0].message.content == drawn.choices[0].message.content


def test_the_official_sdk_for_javascript(base_url: str) -> None:
    assert_converses(node_with("openai.mjs"), base_url)


def test_the_ai_sdk(base_url: str) -> None:
    assert_converses(node_with("ai_sdk.mjs"), base_url)


@pytest.mark.parametrize("name", ["langchain", "pydantic_ai"])
def test_a_framework_for_python(name: str, base_url: str) -> None:
    assert_converses([python_with(name), FOLDER / "python" / f"ask_{name}.py"], base_url)


@pytest.mark.usefixtures("slow_to_install")
@pytest.mark.parametrize("name", ["litellm", "llama_index"])
def test_a_large_framework_for_python(name: str, base_url: str) -> None:
    assert_converses([python_with(name), FOLDER / "python" / f"ask_{name}.py"], base_url)


def test_our_own_client_for_python(fleet: Pods) -> None:
    """`paceline.client` over gRPC: what ends a text, and what does not."""

    def ids(**wishes: Any) -> tuple[list[int], FinishReason]:
        asked = Generation(text="hello world", max_tokens=40, temperature=0, **wishes)
        with SyncGatewayClient(fleet.grpc) as client:
            *events, last = client.generate(asked)
        assert isinstance(last, Finished)
        return [
            token for event in events if isinstance(event, Chunk) for token in event.token_ids
        ], last.reason

    whole, reason = ids(ignore_eos=True)
    assert (len(whole), reason) == (40, FinishReason.LENGTH)
    ended, reason = ids(ignore_eos=True, stop_token_ids=[whole[9]])
    assert reason is FinishReason.STOP
    assert len(ended) <= whole.index(whole[9]) + 1
    longer, _ = ids(ignore_eos=True, stop_token_ids=[whole[9]], min_tokens=20)
    assert len(longer) >= 20
    assert whole[9] not in longer[:19]


# Benchmarks and evaluations.


@pytest.mark.parametrize("backend", ["vllm", "vllm-chat"])
def test_a_vllm_style_benchmark(backend: str, fleet: Pods, tmp_path: Path) -> None:
    """SGLang's, which is vLLM's `benchmark_serving.py` and its parser of streams, in one file."""
    python = python_with("bench_serving")
    [script] = python.parents[1].glob("lib/python*/site-packages/sglang/bench_serving.py")
    run(
        [
            *(python, script, "--backend", backend, "--base-url", fleet.http),
            *("--model", MODEL, "--tokenizer", fleet.model, "--disable-tqdm"),
            *("--dataset-name", "random-ids", "--num-prompts", str(REQUESTS), "--max-concurrency", "2"),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(TOKENS)),
            *("--random-range-ratio", "1", "--output-file", "report.json", "--output-details"),
        ],
        tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["completed"], set(report["errors"])) == (REQUESTS, {""})
    assert report["total_output_tokens"] == REQUESTS * TOKENS
    assert report["mean_ttft_ms"] > 0
    assert all(report["generated_texts"])


def test_guidellm(fleet: Pods, tmp_path: Path) -> None:
    python = python_with("guidellm")
    run(
        [
            *(python.parent / "guidellm", "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={fleet.http},model={MODEL}"),
            *("--profile", "kind=concurrent,streams=2"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={fleet.model}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={TOKENS}"),
            *("--output", "kind=json,path=report.json"),
        ],
        tmp_path,
    )
    [benchmark] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
    assert benchmark["metrics"]["output_token_count"]["successful"]["total_sum"] == REQUESTS * TOKENS


@pytest.mark.usefixtures("slow_to_install")
def test_aiperf(fleet: Pods, tmp_path: Path) -> None:
    python = python_with("aiperf")
    run(
        [
            *(python.parent / "aiperf", "profile", "--model", MODEL, "--url", fleet.http),
            *("--endpoint-type", "chat", "--streaming", "--tokenizer", fleet.model, "--ui", "none"),
            *("--request-count", str(REQUESTS), "--concurrency", "2"),
            *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--output-tokens-mean", str(TOKENS)),
            *("--extra-inputs", "ignore_eos:true", "--artifact-dir", "artifacts"),
        ],
        tmp_path,
        # Offline it takes no folder for a tokenizer.
        HF_HUB_OFFLINE="",
    )
    [path] = tmp_path.glob("artifacts/**/profile_export_aiperf.json")
    report = json.loads(path.read_text())
    assert report["request_count"]["avg"] == REQUESTS


@pytest.mark.usefixtures("slow_to_install")
@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_vllm_bench_serve(backend: str, fleet: Pods, tmp_path: Path) -> None:
    vllm = peers().vllm
    if not vllm.installed:
        pytest.skip("`make peers` installs vLLM")
    endpoint = "/v1/chat/completions" if backend == "openai-chat" else "/v1/completions"
    run(
        [
            *(vllm.python, FOLDER / "python" / "vllm_bench_serve.py"),
            *("--backend", backend, "--base-url", fleet.http, "--endpoint", endpoint),
            *("--model", MODEL, "--tokenizer", fleet.model, "--dataset-name", "random"),
            *("--num-prompts", str(REQUESTS), "--max-concurrency", "2", "--ignore-eos"),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(TOKENS)),
            *("--save-result", "--result-filename", "report.json"),
        ],
        tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["completed"], report["failed"]) == (REQUESTS, 0)
    assert report["total_output_tokens"] == REQUESTS * TOKENS


@pytest.mark.usefixtures("slow_to_install")
def test_lm_eval(base_url: str, tmp_path: Path) -> None:
    """A task that generates; those that want log-probabilities of a prompt are refused by name."""
    python = python_with("lm_eval")
    (tmp_path / "questions.json").write_text(json.dumps([{"asked": QUESTION["content"], "answer": "?"}] * 4))
    (tmp_path / "greeting.yaml").write_text(
        "task: greeting\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/questions.json}}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{asked}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: [], max_gen_toks: 24, do_sample: false, temperature: 0}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    url = f"{base_url}/chat/completions"
    run(
        [
            *(python, "-m", "lm_eval", "--model", "local-chat-completions", "--apply_chat_template"),
            *("--model_args", f"model={MODEL},base_url={url},num_concurrent=2,max_retries=1"),
            *("--include_path", tmp_path, "--tasks", "greeting", "--log_samples", "--output_path", "out"),
        ],
        tmp_path,
    )
    [samples] = tmp_path.glob("out/**/samples_greeting_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert answers == [said(base_url, QUESTION)] * 4


def test_k6(base_url: str) -> None:
    k6 = python_with("k6").parent / "k6"
    script = FOLDER / "node" / "k6.js"
    run([k6, "run", "--no-usage-report", "-e", f"BASE_URL={base_url}", "-e", f"MODEL={MODEL}", script])
