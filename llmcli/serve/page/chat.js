// What happens to the conversation. At most one text is generated at a time.

import { conversation, cut, keep, newReply, runOf } from "./conversation.js";
import { $, button, mayDrop } from "./element.js";
import { extend, randomSeed, readPrompt } from "./generating.js";
import { ServerError } from "./server.js";
import { optionsNow, seedNow, valid } from "./settings.js";
import { Turns } from "./turns.js";

const newSeed = () => seedNow() ?? randomSeed();
const last = () => conversation.turns.at(-1);

export class Chat {
  constructor(model) {
    this.model = model;
    this.turns = new Turns(this);
    this.running = null; // the reply, how many tokens it had, what aborts it, and the conversation before
  }

  send(text) {
    conversation.turns.push({ role: "user", text }, newReply());
    return this.run(last(), newSeed(), optionsNow());
  }

  edit(turn, text) {
    return this.redo(turn, () => {
      conversation.turns.splice(-1, 1, { role: "user", text }, newReply());
    });
  }

  regenerate(reply) {
    return this.redo(reply, (again) => {
      cut(again, 0);
      again.prompt = null; // the system prompt may be another one now
      return { seed: randomSeed() };
    });
  }

  continue(reply) {
    return this.redo(reply, () => {});
  }

  replay(reply, { from, seed, options }) {
    return this.redo(reply, (again) => {
      cut(again, from);
      return { seed, options };
    });
  }

  // Put a rival in a token's place and go on from there.
  pick({ reply, index }, rival) {
    const { top } = reply.tokens[index];
    const end = reply.stops.includes(rival.id);
    return this.redo(reply, (again) => {
      cut(again, index);
      again.tokens.push({ ...rival, rank: top.indexOf(rival), top, chosen: true, end });
    });
  }

  // Open the page of `llmcli explain` about a token in a new tab, which gets a copy of this tab's storage.
  explain({ reply, index }) {
    const { from, seed, options } = runOf(reply, index);
    const { max_tokens, ...sampling } = options;
    const prompt = [...reply.prompt, ...reply.tokens.slice(0, index).map((token) => token.id)];
    const step = Math.max(index - from, 0);
    sessionStorage.setItem("why", JSON.stringify({ ...sampling, model: this.model.id, prompt, token: reply.tokens[index].id, seed, step }));
    window.open("/page/why.html");
  }

  // Start over with a model: token ids are specific to a model.
  use(model) {
    this.model = model;
    conversation.model = model.id;
    this.clear();
  }

  clear() {
    this.stop();
    conversation.turns = [];
    $("notice").replaceChildren();
    this.turns.draw();
    keep();
  }

  // Change the conversation from a turn on. If the server then generates nothing, restore the conversation.
  redo(turn, change) {
    const at = conversation.turns.indexOf(turn);
    const later = conversation.turns.length - at - (turn.role === "user" ? 2 : 1);
    if (!valid() || !mayDrop(later, "Later turns will be deleted.")) return;
    this.stop();
    const before = { turns: structuredClone(conversation.turns), again: () => this.redo(conversation.turns[at], change) };
    conversation.turns.length = at + 1;
    const { seed = newSeed(), options = optionsNow() } = change(last()) ?? {};
    return this.run(last(), seed, options, before);
  }

  async run(reply, seed, options, before = null) {
    const job = { reply, had: reply.tokens.length, abort: new AbortController(), before };
    this.running = job;
    this.begin();
    const failure = await this.generate(job, seed, options).catch((error) => error);
    if (this.running !== job) return; // stopped
    const back = this.settle(failure ? "lost" : "");
    if (failure) complain(failure, back ? before.again : () => this.run(reply, newSeed(), optionsNow()));
    if (failure && !(failure instanceof ServerError)) throw failure;
  }

  begin() {
    $("notice").replaceChildren();
    this.turns.draw();
    this.refresh();
    if (document.activeElement === document.body) $("turns").focus({ preventScroll: true }); // the button pressed is gone
    follow(true);
  }

  async generate({ reply, abort }, seed, options) {
    const turns = conversation.turns.slice(0, conversation.turns.indexOf(reply));
    if (!reply.prompt) await readPrompt(this.model, conversation, turns, reply, abort.signal);
    if (reply.tokens.at(-1)?.end) return;
    await extend(this.model, reply, options, seed, (token) => this.show(reply, token), abort.signal);
  }

  show(reply, token) {
    const near = window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 80;
    this.turns.views.get(reply).add(token);
    follow(near);
  }

  stop() {
    this.running?.abort.abort();
    if (this.running) this.settle("stopped");
  }

  // The text that was generated has ended; `early` says why if it was not the model. Returns whether the conversation
  // is as before, because nothing was generated.
  settle(early) {
    const { reply, had, before } = this.running;
    const back = Boolean(early && before && reply.tokens.length === had);
    this.running = null;
    reply.ended = early || reply.ended;
    if (back) conversation.turns = before.turns;
    if (back) this.turns.draw();
    else this.turns.views.get(reply).speak();
    this.refresh();
    keep();
    return back;
  }

  // Show what can be done now.
  refresh() {
    const more = !this.model.chat && last() && !last().tokens.at(-1)?.end;
    document.body.classList.toggle("running", this.running !== null);
    $("stop").hidden = this.running === null;
    $("send").hidden = this.running !== null;
    $("send").disabled = !($("draft").value || more);
    this.turns.showTools();
  }
}

export function complain(error, again) {
  $("notice").classList.remove("plain");
  $("notice").replaceChildren(error.message, " ", button("Try again", again));
  $("notice").scrollIntoView({ block: "nearest" });
}

function follow(wanted) {
  if (wanted) window.scrollTo(0, document.documentElement.scrollHeight);
}
