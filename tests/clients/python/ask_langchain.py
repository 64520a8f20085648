"""LangChain: python ask_langchain.py BASE_URL MODEL."""

from __future__ import annotations

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

base_url, model = sys.argv[1:]
chat = ChatOpenAI(
    model=model,
    base_url=base_url,
    api_key="none",
    max_tokens=24,
    temperature=0,
    max_retries=0,
    stream_usage=True,
)
question = HumanMessage("hello world")
whole = chat.invoke([question])
pieces = list(chat.stream([question]))
second = chat.invoke([question, whole, HumanMessage("and?")])
told = [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata]
assert told == [whole.usage_metadata["output_tokens"]], told
print(
    json.dumps(
        {
            "whole": whole.content,
            "streamed": "".join(str(piece.content) for piece in pieces),
            "second": second.content,
        }
    )
)
