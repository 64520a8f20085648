// Vercel's AI SDK: node ai_sdk.mjs BASE_URL MODEL
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [baseURL, model] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "paceline", baseURL, includeUsage: true });
const asked = { model: provider.chatModel(model), maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
const messages = [{ role: "user", content: "hello world" }];

const whole = await generateText({ ...asked, messages });

let streamed = "";
for await (const part of streamText({ ...asked, messages }).textStream) {
  streamed += part;
}

const turn = [...messages, ...whole.response.messages, { role: "user", content: "and?" }];
const second = await generateText({ ...asked, messages: turn });

console.log(JSON.stringify({ whole: whole.text, streamed, second: second.text }));
