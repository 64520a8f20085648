"""`vllm bench serve`: the build for CPUs has another package name, over which vLLM's own command stumbles."""

from __future__ import annotations

import argparse

from vllm.benchmarks import serve

parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
