// The models of the server. The first one is loaded; the others load when they are asked for.

import { $, element } from "./element.js";
import { ask } from "./server.js";

export const listModels = async () => (await ask("/v1/models")).data;

// The model with what the server knows about it once it is loaded.
export async function load(model) {
  if (model.defaults) return model;
  await ask("/tokenize", { model: model.id, content: "" });
  return (await listModels()).find(({ id }) => id === model.id);
}

// Whether there is a model to write to.
export function enable(on) {
  for (const control of ["new", "show-settings", "draft", "models"]) $(control).disabled = !on;
  if (!on) $("send").disabled = true;
}

// Show the model, and a list to choose from if there are several.
export function describe(model, all) {
  $("model").textContent = document.title = model.id;
  $("model").hidden = all.length > 1;
  $("models").hidden = all.length < 2;
  $("models").replaceChildren(...all.map(({ id }) => element("option", { value: id }, id)));
  $("models").value = model.id;
  $("kind").textContent = model.chat ? "chat" : "continues a text";
  $("invitation").textContent = model.chat ? "Ask something." : "Begin a text. The model continues it.";
  $("send").textContent = model.chat ? "Send" : "Continue";
  $("draft").placeholder = $("draft-label").textContent = model.chat ? "Message" : "Your text";
  document.body.classList.toggle("prose", !model.chat);
}
