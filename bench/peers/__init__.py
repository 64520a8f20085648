"""Comparison with other servers of the same model on the same machine; the names of all arms."""

TRANSFORMERS = "transformers"
LOOKUP = "transformers+lookup"
BATCHED = "transformers batched"
VLLM = "vllm"
VLLM_NGRAM = "vllm+ngram"
LLAMA = "llama.cpp q4_1"
LLAMA_NGRAM = "llama.cpp q4_1+ngram"
LLAMA_BF16 = "llama.cpp bf16"
LLAMA_BF16_NGRAM = "llama.cpp bf16+ngram"
PEERS = (
    *(TRANSFORMERS, LOOKUP, BATCHED, VLLM, VLLM_NGRAM),
    *(LLAMA, LLAMA_NGRAM, LLAMA_BF16, LLAMA_BF16_NGRAM),
)
PACELINE, PACELINE_SPECULATIVE = "paceline", "paceline+speculation"
ARMS = (*PEERS, PACELINE, PACELINE_SPECULATIVE)
