// The tab that explains one token: it asks for the page of `llmcli explain`, and becomes that page.

import { $ } from "./element.js";
import { askText } from "./server.js";

try {
  const page = await askText("/v1/explain/page", JSON.parse(sessionStorage.getItem("why")));
  document.open();
  document.write(page); // the server's own page: it holds the texts of the model as data
  document.close();
} catch (error) {
  $("state").textContent = error.message;
}
