// The alternatives to a token: a menu that opens on hover and on focus, and that Enter moves into.

import { nameOf } from "./bytes.js";
import { $, element } from "./element.js";
import { percent } from "./probability.js";

const OPENS = 180; // ms that the pointer must rest on a token
const CLOSES = 250; // ms to get from the token to the menu

// `pick(token span, rival)` replaces a token by a rival, `why(token span)` explains it; `tokenOf(span)` is its token.
export class Rivals {
  constructor(turns, tokenOf, pick, why) {
    Object.assign(this, { menu: $("rivals"), tokenOf, pick, why, at: null, pointed: null, timer: 0 });
    turns.addEventListener("pointermove", (event) => this.point(event));
    turns.addEventListener("pointerleave", () => this.later(() => this.closeUnlessUsed(), CLOSES));
    turns.addEventListener("click", (event) => this.show(event.target.closest("[role='option']")));
    turns.addEventListener("focusin", (event) => {
      if (event.target.matches("[role='option']:focus-visible")) this.show(event.target);
    });
    turns.addEventListener("focusout", () => this.later(() => this.closeUnlessUsed(), 0));
    turns.addEventListener("keydown", (event) => this.enter(event));
    document.addEventListener("keydown", (event) => this.dismiss(event), true); // before others: the next Esc stops the text
    this.menu.addEventListener("pointerover", () => clearTimeout(this.timer));
    this.menu.addEventListener("pointerleave", () => {
      this.pointed = null; // the pointer may come back to the token
      this.later(() => this.closeUnlessUsed(), CLOSES);
    });
    this.menu.addEventListener("focusout", () => this.later(() => this.closeUnlessUsed(), 0));
    this.menu.addEventListener("keydown", (event) => this.move(event));
  }

  // The pointer moved. New text that puts a token under a resting pointer does not open the menu.
  point({ target, pointerType }) {
    const span = target.closest("[role='option']");
    if (span === this.pointed || pointerType === "touch") return;
    this.pointed = span;
    if (span) this.later(() => this.show(span), OPENS);
    else this.later(() => this.closeUnlessUsed(), CLOSES);
  }

  later(act, delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(act, delay);
  }

  show(span) {
    if (!span) return;
    clearTimeout(this.timer);
    if (this.at !== span) this.fill(span);
    this.place(span);
  }

  fill(span) {
    const token = this.tokenOf(span);
    this.leave();
    this.at = span;
    span.classList.add("open");
    const title = element("p", { class: "title" }, element("b", {}, nameOf(token)), ` ${percent(token.p)}, rank ${token.rank + 1}`);
    if (token.chosen) title.append(", your choice");
    if (token.end) title.append(", ends the text");
    const largest = Math.max(...token.top.map((rival) => rival.p));
    const items = token.top.map((rival, n) => this.item(token, rival, n, largest));
    const why = this.button("Why this token?", () => this.why(span), "why");
    this.menu.replaceChildren(title, ...items, why);
    this.menu.setAttribute("aria-label", `Alternatives to ${nameOf(token)}`);
  }

  item(token, rival, rank, largest) {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * rival.p) / largest}%`;
    const own = rival.id === token.id;
    const made = this.button("", () => this.pick(this.at, rival), own ? "rival own" : "rival");
    made.append(element("span", { class: "rank" }, rank + 1), element("bdi", {}, nameOf(rival)),
      element("span", { class: "track", "aria-hidden": "true" }, bar), element("span", { class: "p" }, percent(rival.p)));
    made.dataset.id = rival.id;
    made.disabled = own;
    return made;
  }

  button(text, press, kind) {
    const made = element("button", { type: "button", role: "menuitem", tabindex: -1, class: kind }, text);
    made.addEventListener("click", press);
    made.addEventListener("click", () => this.close());
    return made;
  }

  // Below the token, or above it where there is no room; never beyond the edges of the window.
  place(span) {
    this.menu.hidden = false;
    const line = [...span.getClientRects()].find((each) => each.width) ?? span.getBoundingClientRect();
    const { width, height } = this.menu.getBoundingClientRect();
    const { clientWidth, clientHeight } = document.documentElement;
    const below = line.bottom + 4 + height <= clientHeight || line.top < height;
    const top = Math.max(8, Math.min(below ? line.bottom + 4 : line.top - height - 4, clientHeight - height - 8));
    this.menu.style.top = `${window.scrollY + top}px`;
    this.menu.style.left = `${Math.max(8, Math.min(line.left - 8, clientWidth - width - 8))}px`;
  }

  closeUnlessUsed() {
    const focused = document.activeElement;
    if (!this.menu.contains(focused) && focused !== this.at) this.close();
  }

  leave() {
    this.at?.classList.remove("open");
    this.at = null;
  }

  close() {
    clearTimeout(this.timer);
    this.leave();
    this.pointed = null;
    this.menu.hidden = true;
  }

  get items() {
    return [...this.menu.querySelectorAll("button:enabled")];
  }

  dismiss(event) {
    if (event.key !== "Escape" || this.menu.hidden || this.menu.contains(document.activeElement)) return;
    event.stopPropagation();
    this.close();
  }

  enter(event) {
    if (!["Enter", " ", "ArrowDown"].includes(event.key) || !event.target.matches("[role='option']")) return;
    event.preventDefault();
    this.show(event.target);
    this.items[0].focus();
  }

  move(event) {
    const at = this.items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: this.items.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.items.at(to % this.items.length).focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      if (event.key === "Escape") event.preventDefault();
      event.stopPropagation();
      this.at.focus();
      this.close();
    }
  }
}
