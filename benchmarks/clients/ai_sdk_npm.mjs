// Vercel's AI SDK with a provider for whatever speaks OpenAI's API, and with OpenAI's own for transcriptions.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { experimental_transcribe as transcribe, generateObject, generateText, jsonSchema, streamText } from "ai";
import { BASE, BYTES, CAPTION, KEY, LABELS, LONG, MODEL, QUESTION, SAYS, SCHEMA, leaves, run, same } from "./cells.mjs";

const model = createOpenAICompatible({ name: "dasheng", baseURL: BASE, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true })(MODEL);
const file = { type: "file", data: BYTES, mediaType: "audio/wav" };
const messages = [{ role: "user", content: [file, { type: "text", text: QUESTION }] }];
const asked = { model, messages, maxRetries: 0 };

await run({
  json: async () => same((await transcribe({ model: createOpenAI({ baseURL: BASE, apiKey: KEY }).transcription(CAPTION), audio: BYTES, maxRetries: 0 })).text, SAYS),
  chat: async () => same((await generateText(asked)).text, LABELS),
  "chat stream": async () => {
    const result = streamText(asked);
    let text = "";
    for await (const piece of result.textStream) text += piece;
    same(text, LABELS);
    same((await result.usage).inputTokens > 0, true);
  },
  turns: async () => {
    const first = await generateText(asked);
    const more = [...messages, ...first.response.messages, { role: "user", content: QUESTION }];
    same(typeof (await generateText({ ...asked, messages: more })).text, "string");
  },
  "json schema": async () => same(typeof (await generateObject({ ...asked, schema: jsonSchema(SCHEMA), maxOutputTokens: 64 })).object.loud, "boolean"),
  error: async () => {
    const refused = await generateText({ ...asked, presencePenalty: 1 }).then(() => null, (error) => error);
    same(refused?.message.startsWith("presence_penalty"), true);
  },
  cancel: () => leaves(async () => {
    const control = new AbortController();
    const { response_format, ...more } = LONG;
    const long = createOpenAICompatible({ name: "dasheng", baseURL: BASE, apiKey: KEY, transformRequestBody: (body) => ({ ...body, ...more, response_format }) })(MODEL);
    const { textStream } = streamText({ ...asked, model: long, abortSignal: control.signal, onError: () => {} });
    for await (const _ of textStream) { control.abort(); break; }
  }),
});
