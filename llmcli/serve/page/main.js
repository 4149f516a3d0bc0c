// The page: what the user does, and what happens then.

import { $, button, element } from "./element.js";
import { conversation, cut, keep, newReply, runOf } from "./conversation.js";
import { extend, randomSeed, readPrompt } from "./generating.js";
import { ReplyView } from "./reply.js";
import { Rivals } from "./rivals.js";
import { ask, ServerError } from "./server.js";
import { buildSettings, optionsNow, seedNow, toggleSettings } from "./settings.js";

const ENDINGS = { length: "reached the most tokens", stopped: "stopped", lost: "interrupted" };

let model = null;
let running = null; // aborts the text that is generated now
const views = new Map(); // of the replies

const newSeed = () => seedNow() ?? randomSeed();
const lastReply = () => conversation.turns.at(-1);

// --- drawing ---

function render() {
  views.clear();
  $("turns").replaceChildren(...conversation.turns.map((turn) => (turn.role === "user" ? userTurn(turn) : replyTurn(turn))));
  $("empty").hidden = conversation.turns.length > 0;
  refresh();
}

function userTurn(turn) {
  const text = element("p", { class: "text" }, turn.text);
  const made = element("article", { class: "turn user", "aria-label": "You" }, text);
  const pencil = model.chat ? "Edit" : "✎";
  made.append(element("div", { class: "tools" }, button(pencil, () => edit(turn, made), { "aria-label": "Edit", title: "Edit" })));
  return made;
}

function replyTurn(reply) {
  const view = new ReplyView(reply);
  views.set(reply, view);
  view.tools = element("div", { class: "tools" });
  return element("article", { class: "turn reply", "aria-label": "Model" }, view.spoken, element("p", { class: "text" }, view.list), view.tools);
}

// Show what can be done now.
function refresh() {
  document.body.classList.toggle("running", running !== null);
  $("stop").hidden = running === null;
  $("send").hidden = running !== null;
  const last = lastReply();
  const more = !model?.chat && last !== undefined && !last.tokens.at(-1)?.end;
  $("send").disabled = model === null || !($("draft").value || more);
  for (const [reply, view] of views) {
    const busy = running !== null && reply === last;
    view.tools.replaceChildren(...(busy ? [] : toolsOf(reply)));
  }
}

function toolsOf(reply) {
  const run = reply.runs.at(-1);
  const tools = [button("Regenerate", () => regenerate(reply), { title: "Another text, with another seed" })];
  if (reply.prompt && !reply.tokens.at(-1)?.end) tools.push(button("Go on", () => goOn(reply)));
  if (run) tools.push(button(`Seed ${run.seed}`, () => replay(reply, run), { class: "seed", title: "Generate with this seed again: the same text" }));
  if (ENDINGS[reply.ended]) tools.push(element("span", { class: "small" }, ENDINGS[reply.ended]));
  return tools;
}

function edit(turn, shown) {
  const area = element("textarea", { "aria-label": "Edit this text", class: "edit" });
  area.value = turn.text;
  const save = () => {
    dropAfter(turn);
    turn.text = area.value;
    answer();
  };
  const tools = element("div", { class: "tools" }, button("Run from here", save), button("Cancel", render));
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      render();
    }
  });
  shown.classList.add("editing");
  shown.replaceChildren(area, tools);
  grow(area);
  area.focus();
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function complain(error, again) {
  $("notice").replaceChildren(error.message, " ", button("Try again", again));
}

// --- generating ---

function stop() {
  running?.abort();
  running = null;
}

// Generate a reply, or more of it. What was generated stays, whatever happens.
async function run(reply, seed, options) {
  stop();
  const mine = (running = new AbortController());
  $("notice").replaceChildren();
  render();
  if (document.activeElement === document.body) $("turns").focus({ preventScroll: true }); // the button pressed is gone
  follow(true);
  try {
    const before = conversation.turns.slice(0, conversation.turns.indexOf(reply));
    if (!reply.prompt) await readPrompt(model, conversation.system, before, reply, mine.signal);
    await extend(reply, options, seed, (token) => show(reply, token), mine.signal);
  } catch (error) {
    if (!(error instanceof ServerError) && error.name !== "AbortError") throw error;
    if (running === mine) {
      reply.ended = "lost";
      complain(error, () => run(reply, newSeed(), optionsNow()));
    }
  }
  if (running !== mine) return;
  running = null;
  views.get(reply).speak();
  refresh();
  keep();
}

function show(reply, token) {
  const near = isAtEnd();
  views.get(reply).add(token);
  follow(near);
}

const isAtEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 80;

function follow(wanted) {
  if (wanted) window.scrollTo(0, document.documentElement.scrollHeight);
}

function dropAfter(turn) {
  conversation.turns.length = conversation.turns.indexOf(turn) + 1;
}

// Reply to the user's text, which is the last turn.
function answer() {
  const reply = newReply();
  conversation.turns.push(reply);
  return run(reply, newSeed(), optionsNow());
}

function send() {
  const text = $("draft").value;
  if (running || model === null) return;
  if (!text) return $("send").disabled || goOn(lastReply());
  $("draft").value = "";
  grow($("draft"));
  conversation.turns.push({ role: "user", text });
  return answer();
}

function regenerate(reply) {
  dropAfter(reply);
  cut(reply, 0);
  reply.prompt = null; // the system prompt may be another one now
  return run(reply, randomSeed(), optionsNow());
}

function goOn(reply) {
  dropAfter(reply);
  return run(reply, newSeed(), optionsNow());
}

function replay(reply, { from, seed, options }) {
  dropAfter(reply);
  cut(reply, from);
  return run(reply, seed, options);
}

function interrupt() {
  const reply = lastReply();
  if (!running) return;
  stop();
  reply.ended = "stopped";
  views.get(reply).speak();
  refresh();
  keep();
}

// Stop the text; if none is generated, go back to the draft.
function escape() {
  if (running) return interrupt();
  if ($("settings").contains(document.activeElement)) toggleSettings();
  $("draft").focus();
}

// --- tokens ---

function placeOf(span) {
  const [reply, view] = [...views].find(([, view]) => view.list.contains(span));
  return { reply, view, index: view.indexOf(span) };
}

function tokenOf(span) {
  const { reply, index } = placeOf(span);
  return reply.tokens[index];
}

// Put a rival in a token's place and go on from there.
function pick(span, rival) {
  const { reply, index } = placeOf(span);
  const { top } = reply.tokens[index];
  const end = reply.stops.includes(rival.id);
  stop();
  dropAfter(reply);
  cut(reply, index);
  reply.tokens.push({ ...rival, rank: top.indexOf(rival), top, chosen: true, end });
  if (end) render();
  else run(reply, newSeed(), optionsNow());
  views.get(reply).focus(index);
  keep();
}

function why(span) {
  const { reply, index } = placeOf(span);
  const { from, seed, options } = runOf(reply, index);
  const before = [...reply.prompt, ...reply.tokens.slice(0, index).map((token) => token.id)];
  const { max_tokens, ...sampling } = options;
  const step = { ...sampling, prompt: before, token: reply.tokens[index].id, seed, step: Math.max(index - from, 0) };
  sessionStorage.setItem("why", JSON.stringify(step)); // a new tab gets a copy
  window.open("/page/why.html");
}

// --- the start ---

const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("draft").addEventListener("input", () => {
    grow($("draft"));
    refresh();
  });
  $("draft").addEventListener("keydown", (event) => {
    if (event.key === "ArrowUp" && !$("draft").value) views.get(lastReply())?.focus(Infinity);
    else if (isEnter(event)) send();
    else return;
    event.preventDefault();
  });
  $("stop").addEventListener("click", interrupt);
  $("show-settings").addEventListener("click", toggleSettings);
  document.addEventListener("keydown", (event) => event.key === "Escape" && escape());
  $("new").addEventListener("click", () => {
    stop();
    conversation.turns = [];
    $("notice").replaceChildren();
    keep();
    render();
    $("draft").focus();
  });
  window.addEventListener("pagehide", keep);
  new Rivals($("turns"), tokenOf, pick, why);
}

async function start() {
  $("notice").replaceChildren();
  try {
    [model] = (await ask("/v1/models")).data;
  } catch (error) {
    return complain(error, start);
  }
  if (conversation.model !== model.id) Object.assign(conversation, { model: model.id, turns: [] }); // ids are a model's own
  $("model").textContent = document.title = model.id;
  $("kind").textContent = model.chat ? "chat" : "continues a text";
  $("invitation").textContent = model.chat ? "Ask something." : "Begin a text. The model continues it.";
  $("send").textContent = model.chat ? "Send" : "Continue";
  $("draft").placeholder = $("draft-label").textContent = model.chat ? "Message" : "Text to continue";
  document.body.classList.toggle("prose", !model.chat);
  buildSettings(model);
  render();
  if (matchMedia("(hover: hover)").matches) $("draft").focus(); // elsewhere it would open a keyboard
}

listen();
start();
