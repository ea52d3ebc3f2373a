// Asks a server (`dasheng-edge serve`) without any package: `node client.mjs AUDIO`, Node 20 or later.
import { openAsBlob } from "node:fs";
import { basename } from "node:path";

const [, , path] = process.argv;
const server = process.env.SERVER ?? "http://127.0.0.1:8000/v1";
const headers = process.env.KEY ? { authorization: `Bearer ${process.env.KEY}` } : {};
const { data: [{ id }] } = await (await fetch(`${server}/models`, { headers })).json();

const form = new FormData();
form.append("model", `${id}:caption`);
form.append("stream", "true");
form.append("file", await openAsBlob(path), basename(path));
const answer = await fetch(`${server}/audio/transcriptions`, { method: "POST", headers, body: form });
if (!answer.ok) throw new Error((await answer.json()).error.message);
let rest = "";
for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
  const events = (rest + text).split("\n\n");
  rest = events.pop();
  for (const event of events) process.stdout.write(JSON.parse(event.slice("data: ".length)).delta ?? "\n");
}
