// The AI SDK in three APIs, and OpenAI's own package.

import assert from 'node:assert/strict';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';

const url = process.argv[2];
const base = { baseURL: `${url}/v1`, apiKey: 'none' };
const name = 'qwen2.5-coder-0.5b';

const own = new OpenAI(base);
const messages = [{ role: 'user', content: 'Say hi' }];
const direct = await own.chat.completions.create({ model: name, messages, temperature: 0, max_tokens: 20 });
const wanted = direct.choices[0].message.content;
let text = '';
for await (const piece of await own.chat.completions.create({
  model: name, messages, temperature: 0, max_tokens: 20, stream: true,
})) text += piece.choices[0]?.delta?.content ?? '';
assert.equal(text, wanted);

const compatible = createOpenAICompatible({ name: 'pellucid', supportsStructuredOutputs: true, ...base });
const plain = { prompt: 'Say hi', temperature: 0, maxOutputTokens: 20 };
assert.equal((await generateText({ model: compatible(name), ...plain })).text, wanted);
text = '';
for await (const piece of streamText({ model: compatible(name), ...plain }).textStream) text += piece;
assert.equal(text, wanted);

const weather = tool({
  description: 'Weather of a city',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `${city} is sunny`,
});
const called = await generateText({
  model: compatible(name), prompt: 'Weather in Rome?', temperature: 0, toolChoice: 'required', tools: { weather },
});
assert.equal(called.finishReason, 'tool-calls');
assert.deepEqual(called.toolResults.map((one) => one.output), ['Rome is sunny']);

const schema = z.object({ name: z.string(), warm: z.boolean() });
const made = await generateObject({ model: compatible(name), prompt: 'Name a colour', schema, temperature: 0 });
schema.parse(made.object);

for (const model of [createOpenAI(base).responses(name), createAnthropic(base)(name)]) {
  assert.ok((await generateText({ model, prompt: 'Say hi', maxOutputTokens: 20 })).text.length > 0);
  text = '';
  for await (const piece of streamText({ model, prompt: 'Say hi', maxOutputTokens: 20 }).textStream) text += piece;
  assert.ok(text.length > 0);
}
