// detokenize: from tokens back to text.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { shown } from "/web/parts/text.js";

export const detokenizer = {
  id: "detokenizer",
  title: "Detokenizer",
  about: "Each token adds its bytes to the text. The text waits while a character is incomplete, or while a stop string may begin.",
  has: (info) => info.generates,
  View,
};

function View({ look }) {
  const made = look.path;
  if (!made.length) return html`<p class="empty">Run a text first.</p>`;
  return html`<table class="plain"><caption>each generated token, and the text that it completes</caption><thead><tr><th>token</th><th>piece</th><th>text</th>
    </tr></thead>
    <tbody>${made.map((node) => html`<tr key=${node.id}><td class="num">${node.token}</td><td>${shown(node.piece)}</td><td>
      ${node.text ? shown(node.text) : "waits for the next token"}</td></tr>`)}</tbody></table>`;
}
