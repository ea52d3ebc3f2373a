// As cells.py, for JavaScript.
import { readFileSync } from "node:fs";

export const ADDRESS = process.env.SERVER ?? "http://127.0.0.1:8000";
export const BASE = `${ADDRESS}/v1`;
export const MODEL = "micro", CAPTION = "micro:caption", KEY = "none";
export const CLIP = "benchmarks/micro/clips/scene_9000006.flac";
export const SAYS = "a guitar plays, followed by people applauding, followed by a car horn honking";
export const LABELS = "guitar; applause; car horn";
export const QUESTION = "Which labels describe the sound?";
export const BYTES = readFileSync(CLIP);
export const SCHEMA = { type: "object", properties: { loud: { type: "boolean" } }, required: ["loud"], additionalProperties: false };
export const same = (got, want) => {
  if (got !== want) throw new Error(`got ${JSON.stringify(got)?.slice(0, 200)}, expected ${JSON.stringify(want)}`);
};
export const LIST = { type: "array", items: { type: "boolean" }, minItems: 400, maxItems: 400 };
export const LONG = { max_tokens: 1500, temperature: 2, response_format: { type: "json_schema", json_schema: { name: "x", schema: LIST } } };
const left = async () => {
  const numbers = await (await fetch(`${ADDRESS}/metrics`)).text();
  return Number(numbers.match(/^dasheng_edge_requests_total\{path="\/v1\/chat\/completions",status="499"\} (\S+)/m)?.[1] ?? 0);
};
export async function leaves(leave) {
  const before = await left(), start = Date.now();
  await leave();
  while ((await left()) === before)
    if (Date.now() - start > 10000) throw new Error("the server does not see that its client left");
}
export async function run(cells) {
  for (const [cell, work] of Object.entries(cells)) {
    let result = "ok";
    try { await work(); } catch (error) { result = `${error.name}: ${error.message}`.slice(0, 300); }
    console.log(JSON.stringify({ cell, result }));
  }
}
