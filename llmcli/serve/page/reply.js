// A reply, token by token. The arrow keys move between its tokens; its text is also read aloud as it comes. Its thoughts can
// be folded.

import { nameOf, safe, textReader } from "./bytes.js";
import { element } from "./element.js";
import { bucket, percent } from "./probability.js";
import { Thoughts } from "./thoughts.js";

export class ReplyView {
  constructor(reply) {
    this.reply = reply;
    this.list = element("span", { role: "listbox", "aria-orientation": "horizontal", "aria-label": "Tokens of the reply", class: "tokens" });
    this.tools = element("div", { class: "tools" });
    this.spoken = element("p", { class: "hidden", "aria-live": "polite" });
    this.unspoken = "";
    this.read = textReader();
    this.thoughts = null;
    reply.tokens.forEach((token) => this.add(token));
    this.speak();
    this.list.addEventListener("keydown", (event) => this.move(event));
    this.list.addEventListener("focusin", (event) => this.reach(event.target));
  }

  add(token) {
    const text = token.end ? "" : this.read(token);
    const span = element("span", { role: "option", tabindex: this.list.childElementCount ? -1 : 0, class: "token", "aria-selected": false, "data-bucket": bucket(token.p) });
    span.setAttribute("aria-label", `${nameOf(token)}, ${percent(token.p)}${token.chosen ? ", your choice" : ""}`);
    span.classList.toggle("chosen", Boolean(token.chosen));
    span.classList.toggle("end", Boolean(token.end));
    if (text) span.append(...lines(safe(text)));
    else span.dataset.sign = nameOf(token); // drawn, but no part of the text when it is copied
    this.list.append(span);
    this.mark(token);
    this.unspoken += text;
    if (/[.!?\n]\s*$/.test(this.unspoken)) this.speak();
  }

  // Mark the tokens that are thoughts, now that there is one more token.
  mark(token) {
    this.thoughts ??= new Thoughts(this.reply.thinking); // known with the first token
    const before = this.thoughts.count;
    this.thoughts.add(token);
    this.reply.thoughts = this.thoughts.count;
    if (this.thoughts.count) this.list.dataset.thoughts = `Thoughts: ${this.thoughts.count} tokens`;
    for (let n = before; n < this.thoughts.count; n++) this.list.children[n].classList.add("thought");
  }

  // Hide the thoughts, or show them again.
  fold(folded) {
    const first = this.list.children[this.reply.thoughts];
    this.list.classList.toggle("folded", folded);
    if (folded && first) this.reach(first);
  }

  get folded() {
    return this.list.classList.contains("folded");
  }

  // Hand the text so far to a screen reader, a sentence at a time.
  speak() {
    if (this.unspoken) this.spoken.append(element("span", {}, this.unspoken));
    this.unspoken = "";
  }

  indexOf(span) {
    return [...this.list.children].indexOf(span);
  }

  focus(index) {
    const least = this.folded ? this.reply.thoughts : 0;
    this.list.children[Math.min(Math.max(index, least), this.list.childElementCount - 1)]?.focus();
  }

  move(event) {
    const at = this.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.list.childElementCount - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(to);
  }

  // Tab reaches the token that had the focus last.
  reach(span) {
    for (const other of this.list.querySelectorAll("[tabindex='0']")) {
      other.tabIndex = -1;
      other.setAttribute("aria-selected", false);
    }
    span.tabIndex = 0;
    span.setAttribute("aria-selected", true);
  }
}

// A text with a sign at each line break, which is not part of the text when it is copied.
function lines(text) {
  return text.split(/(\n)/).filter(Boolean).flatMap((part) => (part === "\n" ? [element("i", { class: "break" }), "\n"] : [part]));
}
