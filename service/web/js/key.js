// The field for an API key, there only when the service asked for one.

import { byId } from "./dom.js";
import { apiKey } from "./api.js";
import { hear, tell } from "./store.js";

/** Wires the form. The key stays in this tab's session storage, and nowhere else. */
export function wireKey() {
  const form = byId("key");
  const field = byId("key-field");
  hear("key-needed", (problem) => {
    byId("key-detail").textContent =
      problem.status === 403 ? problem.message : apiKey.get() ? "This key is not known." : "This service asks for an API key.";
    if (form.hidden) {
      form.hidden = false;
      field.focus();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apiKey.set(field.value.trim());
    field.value = "";
    form.hidden = true;
    tell("key-given");
  });
}
