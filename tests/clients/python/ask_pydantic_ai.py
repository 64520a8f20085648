"""pydantic-ai: python ask_pydantic_ai.py BASE_URL MODEL."""

from __future__ import annotations

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

base_url, model = sys.argv[1:]
agent = Agent(
    OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none")),
    model_settings={"max_tokens": 24, "temperature": 0},
    retries=0,
)


async def main() -> None:
    whole = await agent.run("hello world")
    async with agent.run_stream("hello world") as stream:
        streamed = "".join([piece async for piece in stream.stream_text(delta=True)])
    second = await agent.run("and?", message_history=whole.all_messages())
    print(json.dumps({"whole": whole.output, "streamed": streamed, "second": second.output}))


asyncio.run(main())
