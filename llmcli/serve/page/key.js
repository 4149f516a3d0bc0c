// The API key, which only this tab keeps.

import { element } from "./element.js";

const KEPT = "api-key";

export const key = () => sessionStorage.getItem(KEPT);

let asking = null; // one dialog for all requests that wait for the key

// Ask until the user enters a key. `wrong`: the server refused the one it got.
export function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const input = element("input", { id: "key", type: "password", autocomplete: "off", required: "", pattern: "[!-~]+", "aria-label": "API key" });
    const why = wrong ? "The server refused this key. Enter another one." : "This server requires an API key. It is stored only in this tab.";
    const form = element("form", { method: "dialog" }, element("h2", { id: "key-title" }, "API key"), element("p", {}, why), input,
      element("button", { type: "submit" }, "Continue"));
    const dialog = element("dialog", { "aria-labelledby": "key-title" }, form);
    document.body.append(dialog);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEPT, input.value);
      dialog.remove();
      asking = null;
      resolve();
    });
    dialog.showModal();
  });
  return asking;
}
