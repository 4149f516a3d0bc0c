// The conversation. Reloading the tab keeps it, closing the tab forgets it; the server stores nothing.
//
// A turn is the user's text, or a reply: its tokens, and the runs that generated them. `prompt` are the ids before it,
// and `generated` the spans of those that replies have.

import { textOf } from "./bytes.js";

const KEPT = "conversation";

export const conversation = { system: "", settings: {}, turns: [], ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };

export function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(conversation));
  } catch {
    sessionStorage.removeItem(KEPT); // too long to keep: rather nothing than an old part
  }
}

export const newReply = () => ({ role: "assistant", tokens: [], prompt: null, generated: [], stops: [], runs: [], ended: "" });

// What the reply says: the token that ends it is not part of it.
export const contentOf = (turn) => (turn.role === "user" ? turn.text : textOf(turn.tokens.filter((token) => !token.end)));

// The run that generated a token; the last one for Infinity.
export const runOf = (reply, index) => reply.runs.findLast((run) => run.from <= index) ?? reply.runs[0];

// Drop a reply's tokens from `index` on, and the runs that began after it.
export function cut(reply, index) {
  reply.tokens.length = index;
  reply.runs = reply.runs.filter((run) => run.from < index);
  reply.ended = "";
}
