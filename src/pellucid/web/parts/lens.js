// The logit lens as a table: rows are blocks, columns are tokens.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { percent, shown } from "/web/parts/text.js";

/** What a lens says of a text: `table` is the server's answer, LogitLens.as_dict() in Python; `token` and `block` are chosen. */
export function LensTable({ table, pieces, token, block, choose }) {
  const top = (layer, t) => table.ids[layer][t].map((id, i) => [table.texts[id], table.probabilities[layer][t][i]]);
  return html`<p class="note">Rows are blocks, columns are tokens: the likeliest next token; dark is sure. Click a cell to choose its token and block.</p>
      <div class="scroll" role="region" aria-label="the likeliest next tokens" tabindex="0"><table class="lens">
      <thead><tr><td></td>${pieces.map((piece, t) => html`<th key=${t} scope="col">${shown(piece)}</th>`)}</tr></thead>
      <tbody>${table.layers.map((layer, l) => html`<tr key=${l} class=${l === block + 1 ? "chosen" : ""}><th scope="row">${named(layer)}</th>
        ${pieces.map((_, t) => [t, top(l, t)]).map(([t, all]) => html`<td key=${t}
          class=${`p${Math.min(9, Math.floor(all[0][1] * 10))} ${t === token ? "here" : ""}`}
          title=${all.map(([text, p]) => `${shown(text)} ${percent(p)}`).join("\n")} onClick=${() => choose({ token: t, block: Math.max(0, l - 1) })}>${shown(all[0][0])}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** The name of a layer without what all have. */
export function named(layer) {
  return layer.replace("blocks.", "").replace(".residual", "");
}
