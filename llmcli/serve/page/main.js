// The page: it asks the server for its model, and then listens to the user.

import { Chat, complain } from "./chat.js";
import { conversation, keep } from "./conversation.js";
import { $, grow, isEnter } from "./element.js";
import { Rivals } from "./rivals.js";
import { ask } from "./server.js";
import { buildSettings, toggleSettings } from "./settings.js";

function listen(chat) {
  const place = (span) => chat.turns.placeOf(span);
  const tokenOf = (span) => place(span).reply.tokens[place(span).index];
  new Rivals($("turns"), tokenOf, (span, rival) => pick(chat, place(span), rival), (span) => chat.explain(place(span)));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(chat);
  });
  $("draft").addEventListener("input", () => {
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
    chat.clear();
    toMessage();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && escape(chat));
  window.addEventListener("pagehide", keep);
}

function send(chat) {
  const text = $("draft").value;
  if (chat.running || $("send").disabled) return;
  if (!text) return chat.continue(conversation.turns.at(-1));
  $("draft").value = "";
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

function describe(model) {
  $("model").textContent = document.title = model.id;
  $("kind").textContent = model.chat ? "chat" : "continues a text";
  $("invitation").textContent = model.chat ? "Ask something." : "Begin a text. The model continues it.";
  $("send").textContent = model.chat ? "Send" : "Continue";
  $("draft").placeholder = $("draft-label").textContent = model.chat ? "Message" : "Your text";
  document.body.classList.toggle("prose", !model.chat);
}

async function start() {
  $("notice").replaceChildren();
  try {
    const [model] = (await ask("/v1/models")).data;
    if (conversation.model !== model.id) Object.assign(conversation, { model: model.id, turns: [] }); // ids are a model's own
    const chat = new Chat(model);
    describe(model);
    buildSettings(model);
    listen(chat);
    chat.turns.draw();
    chat.refresh();
    toMessage();
  } catch (error) {
    complain(error, start);
  }
}

start();
