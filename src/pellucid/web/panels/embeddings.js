// embed: the vectors of the tokens, and what lies near them.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { firstDims } from "/web/picture/layout.js";
import { useAnswer, useTrace } from "/web/server/data.js";
import { Picture, fitted, heat, colour, signedShade } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { shown } from "/web/parts/text.js";

const MOST_ROWS = 40, MOST_DIMS = 192, LABEL = 92, ROW = 14, MOST_WORDS = 24;

export const embeddings = {
  id: "embeddings",
  title: "Embeddings",
  about: "Each token's number selects a row of a matrix: a vector. It is the same wherever the token stands. Click a row to choose its token.",
  has: (info) => "embed" in info.points,
  View,
};

function View({ look, width, at: { token: at }, choose }) {
  const dims = `embed[${firstDims(look.info, "embed", MOST_DIMS)}; tokens=0:${MOST_ROWS}]`;
  const state = useTrace(look, { points: [dims] });
  const ids = [...new Set(look.ids.slice(0, MOST_WORDS))], token = look.ids[at], words = ids.map((one) => look.names[one]);
  const near = useAnswer(look, "/look/neighbours", token === undefined ? null : { model: look.model, ids: [token], n: 10 });
  const map = useAnswer(look, "/look/neighbours", ids.length > 1 ? { model: look.model, ids, n: 0 } : null);
  return html`<div><${State} state=${state}>${state.arrays
    && html`<${Strips} values=${state.arrays.embed} pieces=${look.pieces} width=${width} at=${at} choose=${choose} />`}<//>
    ${(!look.recorded || look.recorded.answers.has("/look/neighbours"))
      && html`<div><h4>The tokens nearest to <span class="piece">${shown(look.pieces[at] ?? "")}</span>, by the cosine of the vectors</h4>
    ${near.error && look.recorded ? html`<p class="empty">The file has the nearest tokens of the first tokens only.</p>` : html`<${State} state=${near}>${near.value && html`<ul class="near">${near.value.neighbours[token].map((one) => html`
      <li key=${one.token}><span class="piece">${shown(one.piece)}</span> <span class="num">${one.cosine.toFixed(3)}</span></li>`)}</ul>`}<//>`}</div>`}
    ${words.length > 1 && (!look.recorded || map.value) && html`<h4>The tokens of the text on a map (the first two principal components)</h4>
      <${State} state=${map}>${map.value && html`<${WordMap} words=${words} places=${map.value.map} width=${width} />`}<//>`}</div>`;
}

function Strips({ values, pieces, width, at: token, choose }) {
  const [rows, dims] = values.shape, most = values.values.reduce((top, x) => Math.max(top, Math.abs(x)), 1e-9);
  const paint = (context, w) => {
    const of = signedShade(most * 0.6);
    for (let r = 0; r < rows; r++) {
      context.fillStyle = colour("ink");
      context.fillText(fitted(context, shown(pieces[r]), LABEL - 8), 0, r * ROW + 11);
    }
    heat(context, values.values, rows, dims, [LABEL, 0, w - LABEL, rows * ROW - 2], of);
    context.strokeStyle = colour("accent");
    if (token < rows) context.strokeRect(0.5, token * ROW + 0.5, w - 1, ROW - 1);
  };
  const at = (x, y) => {
    const r = Math.floor(y / ROW), c = Math.floor(((x - LABEL) / (width - LABEL)) * dims);
    return r < rows && c >= 0 && c < dims ? `${shown(pieces[r])}, component ${c}: ${values.values[r * dims + c].toFixed(4)}` : "";
  };
  return html`<${Picture} width=${width} height=${rows * ROW} paint=${paint} at=${at} of=${[values, width, token]}
    onPick=${(x, y) => { const r = Math.floor(y / ROW); if (r >= 0 && r < rows) choose({ token: r }); }}
    label=${`the first ${dims} components of the embeddings of ${rows} tokens, as a heat map`} />`;
}

const covers = ([x, y, wide, tall], [left, top, w, h]) => x < left + w && left < x + wide && y < top + h && top < y + tall;

function WordMap({ words, places, width }) {
  const height = Math.round(Math.min(320, width * 0.6)), xs = places.map((p) => p[0]), ys = places.map((p) => p[1]);
  const spread = (all) => [Math.min(...all), Math.max(...all) - Math.min(...all) || 1];
  const [left, wide] = spread(xs), [low, tall] = spread(ys);
  const paint = (context, w, h) => {
    const written = []; // boxes of words: a word that would cover another is left out
    places.forEach(([x, y], i) => {
      const px = 16 + ((x - left) / wide) * (w - 110), py = h - 16 - ((y - low) / tall) * (h - 32);
      context.fillStyle = colour("accent");
      context.beginPath();
      context.arc(px, py, 3, 0, 7);
      context.fill();
      context.fillStyle = colour("ink");
      const word = fitted(context, shown(words[i]), 90), box = [px + 6, py - 6, context.measureText(word).width, 12];
      if (written.some((one) => covers(one, box))) return;
      written.push(box);
      context.fillText(word, px + 6, py + 4);
    });
  };
  return html`<${Picture} width=${width} height=${height} paint=${paint} of=${[places, width]} label=${`a map of ${words.length} words`} />`;
}
