// Every method of OpenAI's SDK for Node that this server answers, against a running stack.
// `node walk.mjs`, with the environment of walk.py. Exits non-zero at the first thing that is not as a user expects it.
import assert from "node:assert/strict";
import { createHmac, randomUUID } from "node:crypto";
import OpenAI, { toFile } from "openai";

const { BASE_MODEL: base, TUNED_MODEL: tuned, JOB_ID: jobId, OTHER_PROJECT: project } = process.env;
const client = new OpenAI({ maxRetries: 2, timeout: 120_000 });
const chat = ["sky", "grass"].map((thing) => ({ role: "user", content: `Colour of ${thing}?` }));
const answer = { role: "assistant", content: "blue" };
const rows = Array.from({ length: 12 }, (_, n) => JSON.stringify({ messages: [chat[n % 2], answer] }));
const train = Buffer.from(rows.map((row) => `${row}\n`).join(""));

const said = (content) => [{ role: "assistant", content }];
const pair = {
  input: { messages: chat.slice(0, 1) }, preferred_output: said("It is blue."), non_preferred_output: said("blue"),
};
const preferences = Buffer.from(`${JSON.stringify(pair)}\n`.repeat(12));

const all = async (list) => {
  const found = [];
  for await (const item of await list) found.push(item);
  return found;
};
const refused = (call, kind, code) =>
  assert.rejects(call, (error) => error instanceof kind && (code === undefined || error.code === code));

async function files() {
  const made = [];
  for (let n = 0; n < 3; n++) {
    made.push(await client.files.create({ file: await toFile(train, `${n}.jsonl`), purpose: "fine-tune" }));
  }
  const listed = (await all(client.files.list({ purpose: "fine-tune", limit: 2 }))).map((file) => file.id);
  assert.deepEqual(listed.slice(0, 3), made.map((file) => file.id).reverse());
  assert.equal((await client.files.retrieve(made[0].id)).bytes, train.length);
  assert.deepEqual(Buffer.from(await (await client.files.content(made[0].id)).arrayBuffer()), train);
  assert.equal((await client.files.waitForProcessing(made[0].id)).status, "processed");
  for (const file of made.slice(1)) assert.ok((await client.files.delete(file.id)).deleted);
  await refused(() => client.files.retrieve(made[1].id), OpenAI.NotFoundError);
}

async function uploads() {
  const begun = await client.uploads.create({
    filename: "parts.jsonl", purpose: "fine-tune", bytes: train.length, mime_type: "application/jsonl",
  });
  const halves = [train.subarray(100), train.subarray(0, 100)];
  const parts = await Promise.all(
    halves.map(async (data) => client.uploads.parts.create(begun.id, { data: await toFile(data, "part") })),
  );
  const done = await client.uploads.complete(begun.id, { part_ids: parts.map((part) => part.id).reverse() });
  assert.equal(done.status, "completed");
  assert.deepEqual(Buffer.from(await (await client.files.content(done.file.id)).arrayBuffer()), train);
  const spare = await client.uploads.create({ filename: "a", purpose: "batch", bytes: 1, mime_type: "text/plain" });
  assert.equal((await client.uploads.cancel(spare.id)).status, "cancelled");
}

async function jobs() {
  const calls = client.fineTuning.jobs;
  const walk = randomUUID();
  const pairs = await client.files.create({ file: await toFile(preferences, "pairs.jsonl"), purpose: "fine-tune" });
  const job = await calls.create({
    model: base, training_file: pairs.id, suffix: "walk", seed: 1, metadata: { walk },
    method: { type: "dpo", dpo: { hyperparameters: { beta: 0.2, n_epochs: 1 } } },
    selftune: { rank: 4 },
  });
  assert.equal(job.method.dpo.hyperparameters.beta, 0.2);
  assert.deepEqual((await all(calls.list({ metadata: { walk } }))).map((found) => found.id), [job.id]);
  assert.equal((await calls.pause(job.id)).status, "paused");
  assert.ok(["queued", "validating_files"].includes((await calls.resume(job.id)).status));
  assert.equal((await calls.cancel(job.id)).status, "cancelled");
  await refused(() => calls.pause(job.id), OpenAI.BadRequestError, "invalid_job_state");
  const events = await all(calls.listEvents(job.id, { limit: 2 }));
  assert.equal(events.at(-1).message, `Created fine-tuning job: ${job.id}`);
  await refused(() => calls.create({ model: base, training_file: "file-missing" }), OpenAI.NotFoundError);
  const finished = await calls.retrieve(jobId);
  assert.deepEqual([finished.status, finished.fine_tuned_model], ["succeeded", tuned]);
  const checkpoints = await all(calls.checkpoints.list(jobId, { limit: 1 }));
  assert.equal(checkpoints[0].fine_tuned_model_checkpoint, tuned);
  const result = await (await client.files.content(finished.result_files[0])).text();
  assert.ok(Buffer.from(result, "base64").toString().startsWith("step,train_loss,train_accuracy"));
  const grader = { type: "string_check", name: "n", input: "i", operation: "eq", reference: "r" };
  const reinforcement = { grader, hyperparameters: { eval_samples: 2 } };
  const method = { type: "reinforcement", reinforcement };
  const taught = await calls.create({ model: base, training_file: pairs.id, method });
  assert.deepEqual(taught.method.reinforcement.grader, grader);
  assert.equal(taught.method.reinforcement.hyperparameters.eval_samples, 2);
  await calls.cancel(taught.id);
  const graders = client.fineTuning.alpha.graders;
  assert.deepEqual((await graders.validate({ grader })).grader, grader);
  assert.equal((await graders.run({ grader, model_sample: "s", item: {} })).reward, 0);
  const foreign = { ...grader, input: "{{ x }}" };
  await refused(() => graders.validate({ grader: foreign }), OpenAI.BadRequestError, "invalid_value");
}

async function permissions() {
  // For these methods this SDK sends the admin key, and nothing when there is none.
  const admin = new OpenAI({ adminAPIKey: process.env.OPENAI_API_KEY });
  const calls = admin.fineTuning.checkpoints.permissions;
  const [granted] = await all(calls.create(tuned, { project_ids: [project] }));
  assert.deepEqual((await all(calls.list(tuned, { project_id: project }))).map((item) => item.id), [granted.id]);
  const deleted = await calls.delete(granted.id, { fine_tuned_model_checkpoint: tuned });
  assert.ok(deleted.deleted);
}

async function models() {
  const ids = (await all(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(base) && ids.includes(tuned));
  assert.equal((await client.models.retrieve(tuned)).id, tuned);
  await refused(() => client.models.retrieve("ft:nobody"), OpenAI.NotFoundError, "model_not_found");
  await refused(() => client.models.delete(base), OpenAI.BadRequestError);
}

async function completions() {
  const calls = client.chat.completions;
  const asked = { model: tuned, messages: chat.slice(0, 1), max_tokens: 8, temperature: 0 };
  const whole = await calls.create({ ...asked, temperature: 0.5, n: 2, logprobs: true, top_logprobs: 2 });
  assert.equal(whole.choices.length, 2);
  let text = "";
  let usage;
  for await (const chunk of await calls.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, (await calls.create(asked)).choices[0].message.content);
  assert.ok(usage.completion_tokens > 0);
  const walk = randomUUID();
  const stored = await calls.create({ ...asked, store: true, metadata: { walk } });
  assert.deepEqual((await all(calls.list({ metadata: { walk } }))).map((item) => item.id), [stored.id]);
  assert.equal((await calls.retrieve(stored.id)).id, stored.id);
  assert.deepEqual((await calls.update(stored.id, { metadata: { walk: "b" } })).metadata, { walk: "b" });
  assert.equal((await all(calls.messages.list(stored.id)))[0].content, chat[0].content);
  assert.ok((await calls.delete(stored.id)).deleted);
  const legacy = await client.completions.create({ model: base, prompt: "Once", max_tokens: 4, temperature: 0 });
  let pieces = "";
  const stream = await client.completions.create({
    model: base, prompt: "Once", max_tokens: 4, temperature: 0, stream: true,
  });
  for await (const piece of stream) pieces += piece.choices[0]?.text ?? "";
  assert.equal(pieces, legacy.choices[0].text);
  await refused(() => client.embeddings.create({ model: base, input: "text" }), OpenAI.BadRequestError);
}

async function responses() {
  const calls = client.responses;
  const asked = { model: tuned, input: "Colour of sky?", max_output_tokens: 16, temperature: 0 };
  const first = await calls.create(asked);
  assert.ok(first.output_text);
  assert.equal((await calls.retrieve(first.id)).output_text, first.output_text);
  assert.equal((await all(calls.inputItems.list(first.id)))[0].content[0].text, asked.input);
  let last;
  for await (const event of await calls.create({ ...asked, previous_response_id: first.id, stream: true })) last = event;
  assert.equal(last.response.previous_response_id, first.id);
  assert.equal((await calls.inputTokens.count({ model: tuned, input: asked.input })).input_tokens, first.usage.input_tokens);
  await refused(() => calls.cancel(first.id), OpenAI.BadRequestError);
  await calls.delete(first.id);
  await refused(() => calls.retrieve(first.id), OpenAI.NotFoundError);
}

async function batches() {
  const body = { model: tuned, messages: chat.slice(0, 1), max_tokens: 4 };
  const line = { custom_id: "0", method: "POST", url: "/v1/chat/completions", body };
  const source = await client.files.create({
    file: await toFile(Buffer.from(`${JSON.stringify(line)}\n`), "batch.jsonl"), purpose: "batch",
  });
  const options = { input_file_id: source.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
  const batch = await client.batches.create(options);
  const other = await client.batches.create(options);
  assert.ok(["cancelling", "cancelled"].includes((await client.batches.cancel(other.id)).status));
  assert.equal((await all(client.batches.list({ limit: 1 })))[0].id, other.id);
  const deadline = Date.now() + 120_000;
  let done = batch;
  while (!["completed", "failed", "expired", "cancelled"].includes(done.status)) {
    assert.ok(Date.now() < deadline);
    await new Promise((resolve) => setTimeout(resolve, 200));
    done = await client.batches.retrieve(batch.id);
  }
  assert.equal(done.status, "completed");
  const output = await (await client.files.content(done.output_file_id)).text();
  assert.ok(JSON.parse(output).response.body.choices[0].message);
}

async function webhooks() {
  const secret = Buffer.from("a key of thirty-two random bytes");
  const event = { id: "evt_1", object: "event", created_at: 1, type: "fine_tuning.job.failed", data: { id: jobId } };
  const body = JSON.stringify(event);
  const stamp = `${Math.floor(Date.now() / 1000)}`;
  const signature = createHmac("sha256", secret).update(`wh_1.${stamp}.${body}`).digest("base64");
  const headers = { "webhook-id": "wh_1", "webhook-timestamp": stamp, "webhook-signature": `v1,${signature}` };
  const unwrapped = await client.webhooks.unwrap(body, headers, `whsec_${secret.toString("base64")}`);
  assert.equal(unwrapped.data.id, jobId);
  const types = ["fine_tuning.job.succeeded", "batch.completed"];
  const endpoint = await client.webhooks.create({ name: "walk", url: "https://example.com/hook", event_types: types });
  assert.ok(endpoint.signing_secret.startsWith("whsec_"));
  assert.equal((await client.webhooks.retrieve(endpoint.id)).url, "https://example.com/hook");
  assert.equal((await client.webhooks.update(endpoint.id, { name: "renamed" })).name, "renamed");
  assert.ok((await all(client.webhooks.list())).some((item) => item.id === endpoint.id));
  assert.notEqual((await client.webhooks.rotateSecret(endpoint.id)).signing_secret, endpoint.signing_secret);
  assert.ok((await client.webhooks.delete(endpoint.id)).deleted);
}

await files();
await uploads();
await jobs();
await permissions();
await models();
await completions();
await responses();
await batches();
await webhooks();
await refused(() => new OpenAI({ apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
console.log("openai for Node: walked");
