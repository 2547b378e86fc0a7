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

// A file of lines, all the way.
const line = (custom_id, body) =>
  JSON.stringify({ custom_id, method: "POST", url: "/v1/completions", body: { model, prompt: "Once", max_tokens: 4, ...body } });
const text_of = async (id) => (await client.files.content(id)).text();
const lines = `${line("good")}\n${line("bad", { prompt: "x".repeat(5000) })}\n`;
const file = await client.files.create({ file: new File([lines], "lines.jsonl"), purpose: "batch" });
const file_keys = ["id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details", "lines"];
keys(file, ...file_keys);
assert.deepEqual([file.object, file.bytes, file.filename, file.purpose], ["file", lines.length, "lines.jsonl", "batch"]);
assert.deepEqual(await client.files.retrieve(file.id), file);
assert.equal(await text_of(file.id), lines);

let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/completions", completion_window: "24h" });
const batch_keys = [
  ...["id", "object", "endpoint", "errors", "input_file_id", "completion_window", "status", "output_file_id", "error_file_id"],
  ...["created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at"],
  ...["cancelled_at", "request_counts", "usage", "metadata", "paused_at", "retry_of", "feasibility"],
];
keys(batch, ...batch_keys);
assert.deepEqual([batch.object, batch.output_file_id, batch.errors], ["batch", null, null]);
while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 100));
  batch = await client.batches.retrieve(batch.id);
}
keys(batch, ...batch_keys);
assert.equal(batch.status, "completed");
assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
assert.ok(Number.isInteger(batch.completed_at) && batch.failed_at === null);
const output = JSON.parse(await text_of(batch.output_file_id));
keys(output, "id", "custom_id", "response", "error");
assert.deepEqual([output.custom_id, output.response.status_code, output.error], ["good", 200, null]);
assert.equal(output.response.body.object, "text_completion");
assert.equal(JSON.parse(await text_of(batch.error_file_id)).response.status_code, 400);
const listed = [];
for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
assert.ok(listed.includes(batch.id) && listed.length > 1);
assert.equal((await client.batches.cancel(batch.id)).status, "completed");

const all = [];
for await (const one of client.files.list({ limit: 1, purpose: "batch" })) all.push(one.id);
assert.ok(all.includes(file.id) && new Set(all).size === all.length);
assert.deepEqual(await client.files.delete(file.id), { id: file.id, object: "file", deleted: true });
await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);

const models = await client.models.list();
assert.deepEqual(models.data.map((one) => one.id), [model]);

await assert.rejects(client.completions.create({ ...asked, suffix: "end" }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.deepEqual([error.code, error.param], ["unsupported_parameter", "suffix"]);
  return true;
});
console.log("openai of npm conforms");
