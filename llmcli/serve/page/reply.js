// A reply, token by token. The arrow keys move between its tokens; its text is also read aloud as it comes.

import { nameOf, safe, textReader } from "./bytes.js";
import { element } from "./element.js";
import { bucket, percent } from "./probability.js";

export class ReplyView {
  constructor(reply) {
    this.reply = reply;
    this.list = element("span", { role: "listbox", "aria-orientation": "horizontal", "aria-label": "Tokens of the model", class: "tokens" });
    this.tools = element("div", { class: "tools" });
    this.spoken = element("p", { class: "hidden", "aria-live": "polite" });
    this.unspoken = "";
    this.read = textReader();
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
    this.unspoken += text;
    if (/[.!?\n]\s*$/.test(this.unspoken)) this.speak();
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
    this.list.children[Math.min(Math.max(index, 0), this.list.childElementCount - 1)]?.focus();
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
