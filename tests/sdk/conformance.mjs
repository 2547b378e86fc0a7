// OpenAI's own npm package, as it is, against the service. Arguments: the package's folder, the base URL with /v1, an access token,
// the model's name.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, baseURL, apiKey, model] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });

const keys = (value, ...wanted) => assert.deepEqual(Object.keys(value).sort(), wanted.sort());

const asked = { model, prompt: "Once upon a time", max_tokens: 40, seed: 7 };
const whole = await client.completions.create(asked);
keys(whole, "id", "object", "created", "model", "choices", "usage", "system_fingerprint");
assert.equal(whole.object, "text_completion");
assert.ok(Number.isInteger(whole.created) && whole.id.startsWith("cmpl-"));
keys(whole.choices[0], "text", "index", "finish_reason", "logprobs");
assert.equal(whole.choices[0].logprobs, null);
keys(whole.usage, "prompt_tokens", "completion_tokens", "total_tokens");

let text = "";
let usage = null;
for await (const chunk of await client.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
})) {
  keys(chunk, "id", "object", "created", "model", "choices", "usage", "system_fingerprint");
  text += chunk.choices[0]?.text ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].text);
assert.deepEqual(usage, whole.usage);

const models = await client.models.list();
assert.deepEqual(models.data.map((one) => one.id), [model]);

await assert.rejects(client.completions.create({ ...asked, suffix: "end" }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.deepEqual([error.code, error.param], ["unsupported_parameter", "suffix"]);
  return true;
});
console.log("openai of npm conforms");
