"""What a chat with tools is: a template that shows them, a tool, and a model's text that calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

# As Qwen3's, in short.
TEMPLATE = """\
{%- if tools %}tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
{% endif %}
{%- for m in messages %}{{ m.role }}:
{%- if m.reasoning_content %} <think>{{ m.reasoning_content }}</think>{% endif %} {{ m.content }}
{%- for call in m.tool_calls or [] %}{% set made = call.function %}
<tool_call>{"name": "{{ made.name }}", "arguments": {{ made.arguments | tojson }}}</tool_call>
{%- endfor %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS = '{"city": "Rome \\"eterna\\" }"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TEXT = f"<think>\nThey ask for Rome.\n</think>\n\nLet me see.\n{CALL}"
ASKED: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]


def with_template(folder: Path, template: str) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
