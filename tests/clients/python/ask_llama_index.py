"""llama-index: python ask_llama_index.py BASE_URL MODEL."""

from __future__ import annotations

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

base_url, model = sys.argv[1:]
chat = OpenAILike(
    model=model,
    api_base=base_url,
    api_key="none",
    is_chat_model=True,
    max_tokens=24,
    temperature=0,
    max_retries=0,
)
question = ChatMessage(role="user", content="hello world")
whole = chat.chat([question]).message
streamed = "".join(piece.delta or "" for piece in chat.stream_chat([question]))
second = chat.chat([question, whole, ChatMessage(role="user", content="and?")]).message
print(json.dumps({"whole": whole.content, "streamed": streamed, "second": second.content}))
