// OpenAI's JavaScript package.
import { createReadStream } from "node:fs";
import OpenAI from "openai";
import { BASE, BYTES, CAPTION, CLIP, KEY, LABELS, LONG, MODEL, QUESTION, SAYS, SCHEMA, leaves, run, same } from "./cells.mjs";

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const audio = { type: "input_audio", input_audio: { data: BYTES.toString("base64"), format: "wav" } };
const messages = [{ role: "user", content: [audio, { type: "text", text: QUESTION }] }];
const transcribed = (response_format, more = {}) =>
  client.audio.transcriptions.create({ file: createReadStream(CLIP), model: CAPTION, response_format, ...more });
const completed = (more = {}, options = {}) => client.chat.completions.create({ model: MODEL, messages, ...more }, options);

await run({
  models: async () => same((await client.models.list()).data[0].id, MODEL),
  json: async () => same((await transcribed("json")).text, SAYS),
  text: async () => same((await transcribed("text")).trim(), SAYS),
  srt: async () => same((await transcribed("srt")).slice(0, 5), "1\n00:"),
  vtt: async () => same((await transcribed("vtt")).slice(0, 6), "WEBVTT"),
  verbose_json: async () => same((await transcribed("verbose_json", { timestamp_granularities: ["segment"] })).segments[0].id, 0),
  "transcript stream": async () => {
    let text = "";
    for await (const event of await transcribed("json", { stream: true })) text += event.delta ?? "";
    same(text, SAYS);
  },
  translation: async () => same(typeof (await client.audio.translations.create({ file: createReadStream(CLIP), model: CAPTION })).text, "string"),
  chat: async () => same((await completed()).choices[0].message.content, LABELS),
  "chat stream": async () => {
    let text = "", tokens = 0;
    for await (const chunk of await completed({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      tokens = chunk.usage?.prompt_tokens_details.audio_tokens ?? tokens;
    }
    same(text, LABELS);
    same(tokens > 0, true);
  },
  turns: async () => {
    const { message } = (await completed()).choices[0];
    const more = [...messages, message, { role: "user", content: QUESTION }];
    same((await client.chat.completions.create({ model: MODEL, messages: more })).usage.prompt_tokens_details.cached_tokens > 0, true);
  },
  "json schema": async () => {
    const response_format = { type: "json_schema", json_schema: { name: "x", schema: SCHEMA, strict: true } };
    same(typeof JSON.parse((await completed({ response_format, max_tokens: 64 })).choices[0].message.content).loud, "boolean");
  },
  logprobs: async () => same((await completed({ logprobs: true })).choices[0].logprobs.content.map((one) => one.token).join(""), LABELS),
  embeddings: async () => same((await client.embeddings.create({ model: MODEL, input: [audio] })).data[0].embedding.length, 256),
  error: async () => {
    const refused = await completed({ n: 2 }).then(() => null, (error) => error);
    same(refused instanceof OpenAI.BadRequestError && refused.param, "n");
  },
  cancel: () => leaves(async () => {
    let count = 0;
    for await (const _ of await completed({ stream: true, ...LONG })) if (++count > 3) break;
  }),
});
