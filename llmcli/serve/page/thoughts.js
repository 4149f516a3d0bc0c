// The thoughts before the answer of a reply. `thinking` is what /tokenize says about the reply: the tags of the model, and
// whether the template has begun the thoughts.

import { textOf, textReader } from "./bytes.js";

// Counts the tokens before the answer: call `add` for each token, in order. Text that may still become a tag counts as the answer.
export class Thoughts {
  constructor(thinking) {
    this.thinking = thinking;
    this.state = thinking?.state ?? "answer";
    this.read = textReader();
    this.text = "";
    this.seen = this.count = 0;
  }

  add(token) {
    this.seen += 1;
    if (this.state === "answer") return;
    this.text += this.read(token);
    if (this.state === "start") this.begin();
    if (this.state !== "thoughts") return;
    this.count = this.seen;
    if (this.text.includes(this.thinking.close)) this.state = "answer";
  }

  begin() {
    const { open, skip } = this.thinking;
    const begun = this.text.trimStart();
    if (begun.startsWith(open)) this.state = "thoughts";
    else if (skip && begun.startsWith(skip)) [this.state, this.count] = ["answer", this.seen];
    else if (![open, skip].some((tag) => tag.startsWith(begun))) this.state = "answer";
  }
}

// What a reply thinks, without tags.
export function thoughtsOf({ tokens, thinking, thoughts }) {
  if (!thoughts) return "";
  const { open, close, skip } = thinking;
  const text = textOf(tokens.slice(0, thoughts)).trim();
  if (text === skip) return "";
  return text.slice(text.startsWith(open) ? open.length : 0).split(close)[0].trim();
}
