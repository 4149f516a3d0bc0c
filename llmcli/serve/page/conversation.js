// The conversation. Reloading the tab keeps it, closing the tab forgets it; the server stores nothing.
//
// A turn is the user's text, or a reply: its tokens, and the runs that generated them. `prompt` are the ids before it,
// and `generated` the spans of those that replies have. The first `thoughts` tokens are no part of the answer.

import { textOf } from "./bytes.js";

const KEPT = "conversation";

export const conversation = { system: "", think: "", draft: "", settings: {}, turns: [], ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };

export function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(conversation));
  } catch {
    sessionStorage.removeItem(KEPT); // too long to store: better nothing than an outdated conversation
  }
}

export const newReply = () => ({ role: "assistant", tokens: [], prompt: null, generated: [], stops: [], thinking: null, thoughts: 0, runs: [], ended: "" });

// What a turn says: neither thoughts nor the token that ends it are part of it.
export function contentOf(turn) {
  if (turn.role === "user") return turn.text;
  const text = textOf(turn.tokens.slice(turn.thoughts).filter((token) => !token.end));
  return turn.thoughts ? text.replace(/^\n+/, "") : text;
}

// The run that generated a token; the last one for Infinity.
export const runOf = (reply, index) => reply.runs.findLast((run) => run.from <= index) ?? reply.runs[0];

// Drop a reply's tokens from `index` on, and the runs that began after it.
export function cut(reply, index) {
  reply.tokens.length = index;
  reply.runs = reply.runs.filter((run) => run.from < index);
  reply.ended = "";
}
