// lens: what the model would say if it ended after each block.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, useAnswer } from "/web/server/data.js";
import { State } from "/web/parts/show.js";
import { labelled, percent, shown } from "/web/parts/text.js";

const MOST = 160;

export const lens = {
  id: "lens",
  title: "Logit lens",
  about: "What the model would say if it ended after each block: the vector of each block, read through the last norm and the output matrix.",
  has: (info) => info.generates,
  asks: "/look/lens",
  View,
};

function View({ look, at, choose }) {
  const ids = look.ids.slice(0, MOST), state = useAnswer(look, "/look/lens", changed(look, { model: look.model, prompt: ids, top: 3 }));
  const found = state.value, pieces = found ? labelled(found.pieces.slice(0, MOST), found.characters) : [];
  const top = (layer, t) => found.ids[layer][t].map((token, i) => [found.texts[token], found.probabilities[layer][t][i]]), here = Math.min(at.token, pieces.length - 1);
  return html`<div>${look.ids.length > MOST && html`<p class="note">The first ${MOST} tokens of ${look.ids.length}.</p>`}
    <${State} state=${state}>${found && html`<div><div class="scroll" role="region" aria-label="a wide part that scrolls" tabindex="0"><table class="lens">
      <caption>rows are blocks, columns are tokens: the likeliest next token; dark is sure. Click a cell to choose its token and block.</caption>
      <thead><tr><td></td>${pieces.map((piece, t) => html`<th key=${t} scope="col">${shown(piece)}</th>`)}</tr></thead>
      <tbody>${found.layers.map((layer, l) => html`<tr key=${l} class=${l === at.block + 1 ? "chosen" : ""}><th scope="row">${named(layer)}</th>
        ${pieces.map((_, t) => [t, top(l, t)]).map(([t, all]) => html`<td key=${t}
          class=${`p${Math.min(9, Math.floor(all[0][1] * 10))} ${t === here ? "here" : ""}`}
          title=${all.map(([text, p]) => `${shown(text)} ${percent(p)}`).join("\n")} onClick=${() => choose({ token: t, block: Math.max(0, l - 1) })}>${shown(all[0][0])}</td>`)}</tr>`)}</tbody></table></div>
    <h4>After <span class="piece">${shown(pieces[here] ?? "")}</span>, block by block</h4>
    <table class="plain"><caption>the three likeliest next tokens</caption><tbody>
      ${found.layers.map((layer, l) => html`<tr key=${l} class=${l === at.block + 1 ? "chosen" : ""}><th scope="row">${named(layer)}</th>
      ${top(l, here).map(([text, p], i) => html`<td key=${i}><span class="piece">${shown(text)}</span> ${percent(p)}</td>`)}</tr>`)}</tbody></table></div>`}<//></div>`;
}

function named(layer) {
  return layer.replace("blocks.", "").replace(".residual", "");
}
