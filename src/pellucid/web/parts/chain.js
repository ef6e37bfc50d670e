// The steps of a sampler chain, in their order.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";

/** `steps` are {name, …} with the step's settings, as a recorded run has them. */
export function Chain({ steps }) {
  const settings = (step) => Object.entries(step).filter(([key]) => key !== "name").map(([key, value]) => `${key} ${value}`).join(", ");
  return html`${steps.length > 0 && html`<p class="note">The steps of this run: ${steps.map((step) => `${step.name} (${settings(step)})`).join(" → ")}</p>`}`;
}
