// The settings of the sampler. The server checks them; an empty field has the model's default.

import { conversation, keep } from "./conversation.js";
import { $, element } from "./element.js";

const FIELDS = {
  temperature: ["Temperature", "0 always picks the most probable token.", { min: 0, step: 0.1 }],
  top_k: ["Top-k", "Keep the k most probable tokens; 0 is off.", { min: 0, step: 1 }],
  top_p: ["Top-p", "Keep the most probable tokens that add up to p; 1 is off.", { min: 0, max: 1, step: 0.05 }],
  min_p: ["Min-p", "Keep tokens with at least this fraction of the largest p; 0 is off.", { min: 0, max: 1, step: 0.05 }],
  repetition_penalty: ["Repetition penalty", "Above 1, repetition is less likely; 1 is off.", { min: 0, step: 0.05 }],
  max_tokens: ["Max tokens", "Stop after this many tokens.", { min: 1, step: 1 }],
  seed: ["Seed", "The same seed and settings give the same text.", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }],
};

export function buildSettings(model) {
  const fields = Object.entries(FIELDS).map(([name, [title, help, limits]]) => field(name, title, help, limits, model.defaults[name]));
  if (model.thinking) fields.unshift(switchOf("think", "Thinking", "Whether the model thinks before it answers."));
  $("fields").replaceChildren(...fields);
  $("system-field").hidden = !model.chat;
  $("system").value = conversation.system;
  $("system").oninput = () => {
    conversation.system = $("system").value;
    keep();
  };
}

export function toggleSettings() {
  const shown = $("settings").hidden;
  $("settings").hidden = !shown;
  $("show-settings").setAttribute("aria-expanded", shown);
}

function field(name, title, help, limits, usual) {
  const id = `setting-${name}`;
  const placeholder = usual === undefined ? "random" : Number(usual.toPrecision(4));
  const input = element("input", { id, type: "number", ...limits, step: "any", placeholder });
  if (Number.isInteger(limits.step)) input.step = limits.step;
  input.value = conversation.settings[name] ?? "";
  input.addEventListener("input", () => {
    input.setAttribute("aria-invalid", !input.validity.valid);
    conversation.settings[name] = input.value;
    keep();
  });
  return labelled(input, title, help);
}

function switchOf(name, title, help) {
  const id = `setting-${name}`;
  const choices = { "": "default", on: "on", off: "off" };
  const options = Object.entries(choices).map(([value, text]) => element("option", { value }, text));
  const select = element("select", { id }, ...options);
  select.value = conversation[name];
  select.addEventListener("change", () => {
    conversation[name] = select.value;
    keep();
  });
  return labelled(select, title, help);
}

function labelled(control, title, help) {
  const { id } = control;
  control.setAttribute("aria-describedby", `${id}-help`);
  return element("div", { class: "field" }, element("label", { for: id }, title), control, element("p", { id: `${id}-help`, class: "small" }, help));
}

// The settings that the user made, as options of a request; the seed is apart.
export function optionsNow() {
  const { seed, ...others } = conversation.settings;
  return Object.fromEntries(Object.entries(others).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
}

// Whether all settings are in their ranges; shows the first that is not.
export function valid() {
  const wrong = document.querySelector("#fields :invalid");
  if (!wrong) return true;
  if ($("settings").hidden) toggleSettings();
  return wrong.reportValidity();
}

export function seedNow() {
  const { seed } = conversation.settings;
  return seed ? Number(seed) : null;
}
