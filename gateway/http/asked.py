"""From HTTP bodies to the sessions that they ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fastapi import Request

from gateway import errors
from gateway.caller import Caller
from gateway.chat import Chat
from gateway.chat_template import Rendering
from gateway.choices import MAX_CHOICES, alternatives
from gateway.core import Gateway
from gateway.errors import RequestError
from gateway.generation import Asked, Form, Generation
from gateway.http import body, schema, wishes
from gateway.http.answers import Wanted
from gateway.http.messages import Message
from gateway.http.tools import tool_use
from gateway.request import Handling, Terms, served_model
from gateway.tokenizing import Tokenizing
from gateway.tools.choice import NO_TOOLS, ToolUse
from gateway.tools.demand import demanded
from gateway.trials import Trials
from paceline.logprobs import LogprobsWanted
from paceline.session import NO_LIMITS

# Larger bodies are parsed on a thread, and wait at most this long for one.
_LARGE_BYTES = 64 << 10
_PARSE_SECONDS = 10.0


class Bodies:
    """Reads bodies; large ones are parsed in turns that are fair between keys."""

    def __init__(self, max_bytes: int, trials: Trials, *, ignoring: bool = False) -> None:
        """`ignoring`: fields that are not known are ignored."""
        self._max_bytes = max_bytes
        self._trials = trials
        self._ignoring = ignoring
        self._parsing = Tokenizing()

    async def read(self, request: Request, caller: Caller, kind: type[schema.R]) -> schema.R:
        """The parsed body, of which a constraint can be compiled. Raises `RequestError`."""
        asked = await self._parsed(request, caller, kind)
        if isinstance(asked, schema.Shared) and asked.constraint is not None:
            await self._trials.run(asked.constraint, asked.constraint_field, caller.id)
        return asked

    async def _parsed(self, request: Request, caller: Caller, kind: type[schema.R]) -> schema.R:
        body.check_media_type(request)
        given = await body.read(request, self._max_bytes)
        if len(given) <= _LARGE_BYTES:
            return schema.parse(given, kind, ignoring=self._ignoring)
        until = asyncio.get_running_loop().time() + _PARSE_SECONDS
        try:
            return await self._parsing.run(
                caller.id,
                len(given),
                lambda: schema.parse(given, kind, ignoring=self._ignoring),
                until=until,
            )
        except TimeoutError:
            raise RequestError(errors.OVERLOADED, "too many large bodies wait to be read") from None


def chat(gateway: Gateway, asked: schema.ChatRequest) -> Wanted:
    """The choices of a chat request. Raises `RequestError`."""
    served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, asked.model)
    use = tool_use(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    limit = asked.max_completion_tokens
    field = "max_tokens" if limit is None else "max_completion_tokens"
    sampling = asked.sampling(asked.max_tokens if limit is None else limit)
    if asked.top_logprobs and not asked.logprobs:
        raise RequestError(
            errors.invalid("invalid_value"), "top_logprobs is only taken with logprobs=true", "top_logprobs"
        )
    chat = chat_of(asked.messages, use)
    rendering = gateway.prompts.rendering(rendering_of(asked), asked.reasoning_effort)
    tells_thoughts = asked.include_reasoning is not False
    reading = gateway.prompts.reading(chat, use, rendering, tells_thoughts=tells_thoughts)
    sampling = demanded(sampling, use, reading)
    form = replace(_form(asked, "chat"), reading=reading)
    stop_ids, handled = gateway.prompts.stop_token_ids, _handling(gateway, asked, asked.scores)
    bad_words = gateway.prompts.bad_words(sampling.bad_words)
    terms = Terms(sampling, served, stop_ids, form, "messages", field, bad_words, handled)
    prompt = gateway.prompts.from_chat(chat, rendering, special=bool(asked.add_special_tokens))
    return _wanted([terms.ask(prompt)], [None], asked, best_of=asked.n or 1)


def chat_of(messages: Sequence[Message], use: ToolUse = NO_TOOLS) -> Chat:
    """The chat of a request. Raises `RequestError` for a choice of tools that is not served."""
    return Chat([message.turn() for message in messages], use.offered())


def rendering_of(asked: wishes.Rendered) -> Rendering:
    """How a request's chat is rendered."""
    return Rendering(
        asked.add_generation_prompt is not False,
        bool(asked.continue_final_message),
        asked.chat_template_kwargs or {},
    )


def completion(gateway: Gateway, asked: schema.CompletionRequest) -> Wanted:
    """The choices of a completion request, by OpenAI's default of 16 tokens. Raises `RequestError`."""
    served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, asked.model)
    best_of = _best_of(asked)
    prompts = asked.prompts
    sampling = asked.sampling(16 if asked.max_tokens is None else asked.max_tokens)
    form = replace(_form(asked, "text"), echo=bool(asked.echo))
    scores = asked.scores
    if best_of > (asked.n or 1) and scores.top is None:
        scores = replace(scores, top=0)
    stop_ids, handled = gateway.prompts.stop_token_ids, _handling(gateway, asked, scores)
    bad_words = gateway.prompts.bad_words(sampling.bad_words)
    terms = Terms(sampling, served, stop_ids, form, "prompt", bad_words=bad_words, handling=handled)
    special = asked.add_special_tokens is not False
    choices = []
    for place, given in enumerate(prompts):
        named = terms if len(prompts) == 1 else replace(terms, prompt_field=f"prompt[{place}]")
        prompt = gateway.prompts.from_text(given, special=special) if isinstance(given, str) else tuple(given)
        choices.append(named.ask(prompt))
    cut = asked.truncate_prompt_tokens is not None
    texts = [None if cut or not isinstance(each, str) else each for each in prompts]
    return _wanted(choices, texts, asked, best_of=best_of, scored=asked.logprobs is not None)


def _handling(gateway: Gateway, asked: schema.Sampled, scores: LogprobsWanted) -> Handling:
    if asked.stream and scores.prompt_top is not None:
        raise RequestError(
            errors.UNSUPPORTED,
            "log-probabilities of a prompt are told in one piece, not with stream=true",
            "prompt_logprobs" if asked.prompt_logprobs is not None else "echo",
        )
    return replace(handling(gateway, asked), logprobs=scores)


def handling(gateway: Gateway, asked: schema.Sampled) -> Handling:
    """What a request says of its prompt's length, of its place in line, and of its drafts."""
    guess = asked.prediction
    prediction = None
    if guess is not None and guess.text:
        prediction = gateway.prompts.from_text(guess.text, special=False)
    return Handling(
        asked.truncate_prompt_tokens,
        asked.truncation_side != "right",
        asked.priority or 0,
        asked.cache_salt or "",
        asked.speculation.limits if asked.speculation else NO_LIMITS,
        prediction=prediction,
    )


def _wanted(
    prompts: Sequence[Generation | Asked],
    texts: Sequence[str | None],
    asked: schema.Sampled,
    *,
    best_of: int,
    scored: bool = True,
) -> Wanted:
    n = asked.n or 1
    if len(prompts) * best_of > MAX_CHOICES:
        name = "n" if best_of == n else "best_of"
        raise RequestError(
            errors.invalid("integer_above_max_value"),
            f"{len(prompts)} prompts with {name} {best_of} are more than {MAX_CHOICES} choices",
            name,
        )
    choices = [each for prompt in prompts for each in alternatives(prompt, best_of)]
    return Wanted(choices, best_of, bool(asked.stream), n, scored, texts)


def _best_of(asked: schema.CompletionRequest) -> int:
    """Sessions for each prompt. Raises `RequestError` for fewer than are told."""
    n = asked.n or 1
    best_of = asked.best_of or n
    if best_of < n:
        raise RequestError(
            errors.invalid("integer_below_min_value"), f"best_of must be at least n, which is {n}", "best_of"
        )
    if best_of > n and asked.stream:
        raise RequestError(
            errors.UNSUPPORTED, "which are best is known at the end, not with stream=true", "best_of"
        )
    return best_of


def _form(asked: schema.Sampled, kind: Literal["chat", "text"]) -> Form:
    if asked.stream_options is not None and not asked.stream:
        raise RequestError(
            errors.invalid("invalid_value"), "stream_options is only taken with stream=true", "stream_options"
        )
    options = asked.stream_options or schema.StreamOptions()
    return Form(
        kind,
        options.include_usage,
        int(time.time()),
        options.continuous_usage_stats,
        special_tokens=asked.skip_special_tokens is False,
        stop_in_text=bool(asked.include_stop_str_in_output),
        token_ids=bool(asked.return_token_ids),
    )
