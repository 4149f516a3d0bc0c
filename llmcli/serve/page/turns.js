// The turns as they are drawn, each with its buttons. `chat` has what the buttons do.

import { conversation, runOf } from "./conversation.js";
import { $, button, element, grow, isEnter } from "./element.js";
import { ReplyView } from "./reply.js";

const ENDINGS = { length: "token limit reached", stopped: "stopped", lost: "interrupted" };

export class Turns {
  constructor(chat) {
    this.chat = chat;
    this.views = new Map(); // of the replies
  }

  draw() {
    this.views.clear();
    const drawn = conversation.turns.map((turn) => (turn.role === "user" ? this.drawText(turn) : this.drawReply(turn)));
    $("turns").replaceChildren(...drawn);
    $("empty").hidden = drawn.length > 0;
    this.showTools();
  }

  drawText(turn) {
    const made = element("article", { class: "turn user", "aria-label": "You" }, element("p", { class: "text" }, turn.text));
    const pencil = button(this.chat.model.chat ? "Edit" : "✎", () => this.edit(turn, made), { "aria-label": "Edit", title: "Edit" });
    made.append(element("div", { class: "tools" }, pencil));
    return made;
  }

  drawReply(reply) {
    const view = new ReplyView(reply);
    view.fold(reply !== conversation.turns.at(-1));
    this.views.set(reply, view);
    return element("article", { class: "turn reply", "aria-label": "Model" }, view.spoken, element("p", { class: "text" }, view.list), view.tools);
  }

  // The buttons below the replies: none while one is generated.
  showTools() {
    for (const [reply, view] of this.views) {
      view.tools.replaceChildren(...(this.chat.running?.reply === reply ? [] : this.toolsOf(reply, view)));
    }
  }

  toolsOf(reply, view) {
    const run = runOf(reply, Infinity);
    const tools = [button("Regenerate", () => this.chat.regenerate(reply), { title: "Generate another text, with a new seed" })];
    if (reply.prompt && !reply.tokens.at(-1)?.end) tools.push(button("Continue", () => this.chat.continue(reply)));
    if (run) tools.push(button(`Seed ${run.seed}`, () => this.chat.replay(reply, run), { class: "seed", title: "Generate again with this seed and the same settings" }));
    if (reply.thoughts) tools.push(button(view.folded ? "Show thoughts" : "Hide thoughts", () => this.fold(view)));
    if (ENDINGS[reply.ended]) tools.push(element("span", { class: "small" }, ENDINGS[reply.ended]));
    return tools;
  }

  fold(view) {
    view.fold(!view.folded);
    this.showTools();
  }

  edit(turn, shown) {
    const area = element("textarea", { "aria-label": "Edit this text", class: "edit", rows: 1 });
    const save = () => this.chat.edit(turn, area.value);
    area.value = turn.text;
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (isEnter(event)) save();
      else if (event.key === "Escape") this.draw();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    shown.classList.add("editing");
    shown.replaceChildren(area, element("div", { class: "tools" }, button("Run from here", save), button("Cancel", () => this.draw())));
    grow(area);
    area.focus();
  }

  // The reply and the index of the token that an element shows.
  placeOf(span) {
    const [reply, view] = [...this.views].find(([, view]) => view.list.contains(span));
    return { reply, index: view.indexOf(span) };
  }
}
