// Elements of the page. Texts are set as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function button(text, press, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", press);
  return made;
}

// Make a text area as high as its text.
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

// Whether the user lets `count` turns go; there is nothing to ask if there are none.
export const mayDrop = (count, message) => count < 1 || window.confirm(message);

// Whether a key sends a text: Enter, unless it chooses a word of an input method.
export const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
