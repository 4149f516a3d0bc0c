// The page: it asks the server for its models, and then listens to the user.

import { Chat, complain } from "./chat.js";
import { conversation, keep } from "./conversation.js";
import { $, grow, isEnter, mayDrop } from "./element.js";
import { describe, enable, listModels, load } from "./models.js";
import { Rivals } from "./rivals.js";
import { buildSettings, toggleSettings, valid } from "./settings.js";

function listen(chat) {
  const place = (span) => chat.turns.placeOf(span);
  const tokenOf = (span) => place(span).reply.tokens[place(span).index];
  new Rivals($("turns"), tokenOf, (span, rival) => pick(chat, place(span), rival), (span) => chat.explain(place(span)));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(chat);
  });
  $("draft").addEventListener("input", () => {
    conversation.draft = $("draft").value;
    grow($("draft"));
    chat.refresh();
  });
  $("draft").addEventListener("keydown", (event) => {
    if (isEnter(event)) send(chat);
    else if (event.key === "ArrowUp" && !$("draft").value) chat.turns.views.get(conversation.turns.at(-1))?.focus(Infinity);
    else return;
    event.preventDefault();
  });
  $("stop").addEventListener("click", () => escape(chat));
  $("show-settings").addEventListener("click", toggleSettings);
  $("new").addEventListener("click", () => {
    if (mayDrop(conversation.turns.length, "This conversation will be deleted.")) chat.clear();
    toMessage();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && escape(chat));
  window.addEventListener("pagehide", keep);
}

function send(chat) {
  const text = $("draft").value;
  if (chat.running || $("send").disabled) return;
  if (!text) return chat.continue(conversation.turns.at(-1));
  if (!valid()) return;
  $("draft").value = conversation.draft = "";
  grow($("draft"));
  chat.send(text);
}

function pick(chat, place, rival) {
  chat.pick(place, rival);
  chat.turns.views.get(conversation.turns.at(-1)).focus(place.index);
}

// Stop the text; if none is generated, go back to the message.
function escape(chat) {
  if (chat.running) chat.stop();
  else if ($("settings").contains(document.activeElement)) toggleSettings();
  toMessage();
}

// Focus the message, but not where that opens a keyboard over the text.
function toMessage() {
  if (matchMedia("(hover: hover)").matches) $("draft").focus();
}

// Change to another model, which may have to load first. Until then, there is nothing to write to.
async function change(chat, model, all) {
  if (!mayDrop(conversation.turns.length, "Another model starts a new conversation.")) return describe(chat.model, all);
  chat.stop();
  enable(false);
  $("notice").replaceChildren(`Loading ${model.id} …`);
  $("notice").classList.add("plain");
  try {
    chat.use(await load(model));
  } catch (error) {
    complain(error, () => change(chat, model, all));
  }
  show(chat, all);
}

function show(chat, all) {
  describe(chat.model, all);
  enable(true);
  buildSettings(chat.model);
  chat.turns.draw();
  $("draft").value = conversation.draft;
  grow($("draft"));
  chat.refresh();
  toMessage();
}

async function start() {
  $("notice").replaceChildren();
  try {
    const all = await listModels();
    const chat = new Chat(await load(all.find(({ id }) => id === conversation.model) ?? all[0]));
    if (conversation.model !== chat.model.id) chat.use(chat.model);
    $("models").addEventListener("change", () => change(chat, all[$("models").selectedIndex], all));
    listen(chat);
    show(chat, all);
  } catch (error) {
    complain(error, start);
  }
}

start();
