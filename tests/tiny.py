"""Tiny random models for tests: whole Hugging Face folders that load and generate in milliseconds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
BOS_ID = 1
EOS_ID = 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
)
VOCAB = 512
WIDTH = 64
# Long enough that a session of this length is still running when a test has done something to it.
CONTEXT = 16384
# Factors on the random output layer. The likeliest of 512 tokens gets some tens of per cent, so texts
# vary; among a handful of tokens no continuation outweighs all others.
PEAKEDNESS = 12.0
FLATNESS = 5.0


def make_tiny_model(
    path: Path,
    *,
    vocab_size: int = VOCAB,
    layers: int = 2,
    width: int = WIDTH,
    seed: int = 0,
    context: int = CONTEXT,
) -> Path:
    """A random float32 Llama with a byte-level tokenizer and a chat template, saved in `path`."""
    model = _random_llama(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        seed=seed,
        eos=EOS_ID,
        scale=PEAKEDNESS,
        context=context,
    )
    model.save_pretrained(path)
    GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID).save_pretrained(path)
    _tokenizer(vocab_size).save_pretrained(path)
    return path


def make_enumerable_model(path: Path, *, vocab_size: int = 8, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama of so few tokens that all its continuations can be listed; it has no tokenizer."""
    model = _random_llama(vocab_size=vocab_size, layers=layers, seed=seed, eos=None, scale=FLATNESS)
    model.save_pretrained(path)
    return path


def _random_llama(
    *,
    vocab_size: int,
    layers: int,
    seed: int,
    eos: int | None,
    scale: float,
    width: int = WIDTH,
    context: int = CONTEXT,
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID if eos is not None else None,
        eos_token_id=eos,
        pad_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        # Unit-variance final states times this layer: logits of about scale / 6 standard deviation.
        model.lm_head.weight.mul_(scale / (6 * 0.2 * config.hidden_size**0.5))
    return model


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ValueError(f"a byte-level tokenizer needs {len(alphabet) + len(SPECIAL_TOKENS)} tokens or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _words() -> list[str]:
    """Enough different words for merges to fill the vocabulary."""
    random = Random(0)
    made = ["".join(random.choices("etaoinshrdlu", k=random.randint(2, 6))) for _ in range(2000)]
    return ["the quick brown fox jumps over the lazy dog hello world " * 100, " ".join(made)]
