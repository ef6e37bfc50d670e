// Texts to begin with: nobody meets an empty form.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";

const plain = { chat: false, max_tokens: 20, temperature: 0, seed: 1 };

/** `at(info)` is where the picture looks: the middle of the model where nothing else is known. */
export const EXAMPLES = [
  { title: "The capital of France is …", about: "a fact that the model knows", form: { ...plain, text: "The capital of France is" }, at: (info) => ({ view: "whole", block: middle(info) }) },
  { title: "… because it was too …", about: "which word does “it” look at?", form: { ...plain, text: "The animal didn't cross the street because it was too", max_tokens: 8 }, at: (info) => ({ view: "whole", block: Math.min(13, info.blocks.length - 1), head: 8, token: 8 }) },
  { title: "The dog bites the man", about: "order: who bites whom?", form: { ...plain, text: "The dog bites the man. The man bites the", max_tokens: 8 }, at: (info) => ({ view: "whole", block: 0, panel: info.position === "none" ? "" : "positions" }) },
  { title: "king and queen", about: "words whose vectors are near each other", form: { ...plain, text: "king queen man woman prince princess Paris France", max_tokens: 8 }, at: () => ({ view: "whole", panel: "embeddings" }) },
  { title: "running, unbelievably", about: "words that are cut into pieces", form: { ...plain, text: "Running is unbelievably tokenizable", max_tokens: 12 }, at: () => ({ view: "whole", panel: "tokens" }) },
];

function middle(info) {
  return Math.floor(info.blocks.length / 2);
}

export function Examples({ info, onChoose }) {
  return html`<section class="examples" aria-label="examples"><p>Write a text and press <b>Run</b>, or begin with an example:</p><div>${EXAMPLES.map((one) => html`<button type="button" key=${one.title} onClick=${() => onChoose(one)}><b>${one.title}</b><span>${one.about}</span></button>`)}</div>
    <p class="note">${info.generates ? "The picture shows each token's way through the model while the text is made." : "This model reads a sentence at once and makes a vector of it; it writes no text."}</p></section>`;
}
