// detokenize: from tokens back to text.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { shown } from "/web/parts/text.js";

export const detokenizer = {
  id: "detokenizer",
  title: "Detokenizer",
  about: "Each token's bytes are added to the text. Text is held back while a character is not complete, or while a stop string may have begun.",
  has: (info) => info.generates,
  View,
};

function View({ look }) {
  const made = look.path;
  if (!made.length) return html`<p class="empty">Nothing has been generated yet.</p>`;
  return html`<table class="plain"><caption>tokens that were generated, and the text that each one completed</caption><thead><tr><th>token</th><th>piece</th><th>text</th></tr></thead>
    <tbody>${made.map((node) => html`<tr key=${node.id}><td class="num">${node.token}</td><td>${shown(node.piece)}</td><td>${node.text ? shown(node.text) : "held back"}</td></tr>`)}</tbody></table>`;
}
