// Requests to the server, with the API key if it has one. What goes wrong is a ServerError with one line for the user.

import { askForKey, key } from "./key.js";

export class ServerError extends Error {}

// The JSON of the answer; `body` makes it a POST.
export async function ask(path, body, signal) {
  const answer = await request(path, body, signal);
  return unlessLost(() => answer.json());
}

// The text of the answer to a POST.
export async function askText(path, body) {
  const answer = await request(path, body);
  return unlessLost(() => answer.text());
}

// The chunks of a stream.
export async function* stream(path, body, signal) {
  const answer = await request(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { done, value } = await unlessLost(() => reader.read());
    if (done) throw new ServerError("The connection was lost.");
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message);
      yield chunk;
    }
  }
}

async function request(path, body, signal) {
  while (true) {
    const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
    const options = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } } : { headers };
    const answer = await fetch(path, { ...options, signal }).catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError("The server cannot be reached.");
    });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw new ServerError(await reason(answer));
    await askForKey(Boolean(key()));
  }
}

async function reason(answer) {
  const wait = answer.headers.get("Retry-After");
  const found = await answer.json().catch(() => null);
  const message = found?.error?.message ?? `The server returned status ${answer.status}.`;
  return wait ? `${message} (try again in ${wait} s)` : message;
}

async function unlessLost(read) {
  try {
    return await read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError("The connection was lost.");
  }
}
