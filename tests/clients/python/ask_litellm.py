"""litellm: python ask_litellm.py BASE_URL MODEL."""

from __future__ import annotations

import json
import sys

import litellm

base_url, model = sys.argv[1:]
asked = {
    "model": f"openai/{model}",
    "api_base": base_url,
    "api_key": "none",
    "max_tokens": 24,
    "temperature": 0,
    "num_retries": 0,
}
question = {"role": "user", "content": "hello world"}
whole = litellm.completion(messages=[question], **asked)
message = whole.choices[0].message
stream = litellm.completion(messages=[question], stream=True, **asked)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
second = litellm.completion(messages=[question, message, {"role": "user", "content": "and?"}], **asked)
print(
    json.dumps({"whole": message.content, "streamed": streamed, "second": second.choices[0].message.content})
)
