// The official SDK for JavaScript: node openai.mjs BASE_URL MODEL
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { model, max_tokens: 24, temperature: 0 };
const messages = [{ role: "user", content: "hello world" }];

const whole = await client.chat.completions.create({ ...asked, messages });
const message = whole.choices[0].message;

let streamed = "";
let usage;
const stream = await client.chat.completions.create({
  ...asked,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage ??= chunk.usage;
}
assert.deepEqual(usage.prompt_tokens, whole.usage.prompt_tokens);
assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);

const turn = [...messages, message, { role: "user", content: "and?" }];
const second = await client.chat.completions.create({ ...asked, messages: turn });

// The server chose the seed, JSON.parse made a double of it, and it still gives the same text.
for (let round = 0; round < 3; round++) {
  const drawn = await client.chat.completions.create({ ...asked, messages, temperature: 1 });
  const { seed } = drawn.paceline;
  assert(Number.isSafeInteger(seed), `${seed} is rounded`);
  const again = await client.chat.completions.create({ ...asked, messages, temperature: 1, seed });
  assert.equal(again.choices[0].message.content, drawn.choices[0].message.content);
}

await assert.rejects(
  client.chat.completions.create({ ...asked, messages, max_tokens: 0 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "max_tokens",
);

console.log(
  JSON.stringify({ whole: message.content, streamed, second: second.choices[0].message.content }),
);
