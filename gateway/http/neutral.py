"""Known fields that are not served, and their neutral values, which are accepted.

They are OpenAI's, and those that clients and bench tools of vLLM, SGLang and llama.cpp send by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import UNKNOWN_FIELD, UNSUPPORTED, RequestError


def _nothing(_: Any) -> bool:
    return False


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 512


def _one_of(*neutral: Any) -> Callable[[Any], bool]:
    """Whether a value equals one of `neutral`: 1 equals 1.0, but True does not equal 1."""
    return lambda value: any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )


# Null is neutral for each of them.
NOT_YET: dict[str, Callable[[Any], bool]] = {
    "audio": _nothing,
    "function_call": _one_of("none"),
    "functions": _one_of([]),
    "modalities": _one_of(["text"]),
    "parallel_tool_calls": _one_of(True, False),
    "prompt_cache_key": _text,
    "reasoning_effort": _one_of("none"),
    "safety_identifier": _text,
    "service_tier": _one_of("auto", "default"),
    "suffix": _one_of(""),
    "tool_choice": _one_of("none", "auto"),
    "tools": _one_of([]),
    "verbosity": _nothing,
    "web_search_options": _nothing,
    # vLLM's.
    "chat_template": _nothing,
    "detokenize": _one_of(True),
    "documents": _one_of([]),
    "early_stopping": _one_of(False),
    "ec_transfer_params": _one_of({}),
    "guided_decoding_backend": _nothing,
    "guided_whitespace_pattern": _nothing,
    "include_reasoning": _one_of(True),
    "kv_transfer_params": _one_of({}),
    "length_penalty": _one_of(1),
    "logits_processors": _one_of([]),
    "logprob_token_ids": _nothing,
    "media_io_kwargs": _one_of({}),
    "mm_processor_kwargs": _one_of({}),
    "prompt_embeds": _nothing,
    "repetition_detection": _nothing,
    "request_id": _text,
    "return_mm_kwargs": _one_of(True),
    "return_prompt_text": _one_of(False),
    "return_token_offsets": _one_of(False),
    "return_tokens_as_token_ids": _one_of(False),
    "routed_experts_prompt_start": _one_of(0),
    "session_id": _text,
    "stream_interval": _one_of(1),
    "thinking_token_budget": _one_of(-1),
    "use_beam_search": _one_of(False),
    "vllm_xargs": _one_of({}),
    "watermarking": _one_of(False),
    # SGLang's.
    "bootstrap_host": _nothing,
    "bootstrap_port": _nothing,
    "bootstrap_room": _nothing,
    "custom_labels": _one_of({}),
    "custom_logit_processor": _one_of("", []),
    "custom_params": _one_of({}),
    "data_parallel_rank": _nothing,
    "disagg_prefill_dp_rank": _nothing,
    "extra_key": _nothing,
    "images_config": _one_of({}),
    "input_ids": _nothing,
    "lora_path": _nothing,
    "max_dynamic_patch": _nothing,
    "min_dynamic_patch": _nothing,
    "ngram_corpus_id": _nothing,
    "no_stop_trim": _one_of(False),
    "reasoning": _one_of({}),
    "return_cached_tokens_details": _one_of(False),
    "return_hidden_states": _one_of(False),
    "return_meta_info": _one_of(False),
    "return_prompt_token_ids": _one_of(False),
    "return_routed_experts": _one_of(False),
    "rid": _text,
    "routed_dp_rank": _nothing,
    "routed_experts_start_len": _one_of(0),
    "separate_reasoning": _one_of(True, False),
    "session_params": _one_of({}),
    "stop_regex": _one_of("", []),
    "stream_reasoning": _one_of(True, False),
    "task": _nothing,
    "use_audio_in_video": _one_of(False),
    # llama.cpp's.
    "cache_prompt": _one_of(True, False),
    "dry_multiplier": _one_of(0),
    "dynatemp_range": _one_of(0),
    "mirostat": _one_of(0),
    "n_probs": _one_of(0),
    "post_sampling_probs": _one_of(False),
    "repeat_penalty": _one_of(1),
    "return_tokens": _one_of(False),
    "samplers": _nothing,
    "timings_per_token": _one_of(False),
    "top_n_sigma": _one_of(-1, 0),
    "xtc_probability": _one_of(0),
}


NOT_YET_OF_CHATS = NOT_YET | {"best_of": _one_of(1), "echo": _one_of(False)}
NOT_YET_OF_TEXTS = NOT_YET | {
    "add_generation_prompt": _one_of(True),
    "chat_template_kwargs": _one_of({}),
    "continue_final_message": _one_of(False),
}


# Of requests that ask for ids only.
NOT_YET_OF_TOKENS = {
    "chat_template": _nothing,
    "media_io_kwargs": _one_of({}),
    "mm_processor_kwargs": _one_of({}),
    "tools": _one_of([]),
}


def strip(
    fields: dict[str, Any],
    known: frozenset[str],
    not_yet: Mapping[str, Callable[[Any], bool]],
    *,
    ignoring: bool = False,
) -> list[str]:
    """Remove unknown fields with neutral values. Raises `RequestError` that names any other.

    `ignoring`: those that are not in `not_yet` are removed, too; returns their names.
    """
    ignored = []
    for name in sorted(fields.keys() - known):
        value = fields[name]
        if value is not None:
            if name not in not_yet:
                if not ignoring:
                    raise RequestError(UNKNOWN_FIELD, f"unrecognized request argument: {name}", name)
                ignored.append(name)
            elif not not_yet[name](value):
                raise RequestError(UNSUPPORTED, f"{name} is not supported yet", name)
        del fields[name]
    return ignored


def strip_message(fields: Any, told: frozenset[str]) -> Any:
    """A message without null and empty fields, which SDKs send with earlier replies, but for those `told`."""
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in fields.items() if name in told or value not in (None, "", [], {})}
