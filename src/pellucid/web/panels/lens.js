// lens: what the model would say if it ended after each block.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, readFields, useAnswer } from "/web/server/data.js";
import { LensTable, named } from "/web/parts/lens.js";
import { State } from "/web/parts/show.js";
import { counted, labelled, percent, shown } from "/web/parts/text.js";

const MOST = 160, TOP = 10, MOST_AT_ONE = 2048; // tokens of the table; likeliest tokens at the chosen one, and the last place where they are read

export const lens = {
  id: "lens",
  title: "Logit lens",
  about: "What the model would say if it ended after each block: the vector of each block, read through the last norm and the output matrix.",
  has: (info) => info.generates,
  asks: "/look/lens",
  View,
};

function View({ look, at, choose }) {
  const ids = look.ids.slice(0, MOST), state = useAnswer(look, "/look/lens", changed(look, { model: look.model, ...readFields(look, ids), top: 3 }));
  const found = state.value, pieces = found ? labelled(found.pieces.slice(0, MOST), found.characters) : [];
  const here = Math.min(at.token, pieces.length - 1);
  return html`<div>${look.ids.length > MOST && html`<p class="note">The first ${MOST} tokens of ${look.ids.length}.</p>`}
    <${State} state=${state}>${found && html`<div><${LensTable} table=${found} pieces=${pieces} token=${here} block=${at.block} choose=${choose} />
    <${Here} look=${look} at=${at} table=${found} /></div>`}<//></div>`;
}

/** What the lens says after the chosen token: the rank and probability of the token that came, and the likeliest ones. */
function Here({ look, at, table }) {
  const token = Math.min(at.token, look.ids.length - 1), inTable = token < table.tokens.length, isFile = !!look.recorded,
    next = look.ids[token + 1] ?? (inTable ? table.ids.at(-1)[token][0] : null);
  const body = isFile || next === null || token >= MOST_AT_ONE ? null
    : changed(look, { model: look.model, ...readFields(look, look.ids.slice(0, token + 1)), top: TOP, token: next, position: token });
  const state = useAnswer(look, "/look/lens", body), found = state.value;
  const rows = found
    ? found.layers.map((_, l) => ({ ids: found.ids[l][0], probabilities: found.probabilities[l][0], rank: found.ranks[l][0][0],
      p: found.wanted[l][0][0] }))
    : inTable ? table.layers.map((_, l) => ({ ...ofTable(table, l, token, next), ids: table.ids[l][token],
      probabilities: table.probabilities[l][token] })) : null;
  const texts = { ...table.texts, ...found?.texts }, isLast = token + 1 >= look.ids.length;
  const name = html`“<span class="piece">${shown(look.pieces[token + 1] ?? texts[next] ?? look.names[next] ?? `#${next}`)}</span>”`;
  if (!rows) return state.error ? html`<p class="error" role="alert">${state.error.message}</p>`
    : html`<p class="empty" role="status">Reading the values …</p>`;
  return html`<h4>After <span class="piece">${shown(look.pieces[token] ?? "")}</span>, block by block</h4>
    <p class="note">${isLast ? "No token came here yet: the line is about the likeliest one, " : "The token that came is "}
      ${name}.${" "}${firstOf(rows, table.layers, name)}</p>
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    <div class="scroll" role="region" aria-label="the likeliest tokens after each block" tabindex="0"><table class="plain lens-here">
      <thead><tr><th scope="col">after</th><th scope="col" class="num">rank of ${name}</th><th scope="col" class="num">probability</th>
        <th scope="col" colspan=${rows[0].ids.length}>the ${rows[0].ids.length} likeliest tokens</th></tr></thead>
      <tbody>${rows.map((row, l) => html`<tr key=${l} class=${l === at.block + 1 ? "chosen" : ""}><th scope="row">${named(table.layers[l])}</th>
        <td class="num">${row.rank === null ? `> ${row.ids.length}` : counted(row.rank)}</td>
        <td class="num">${row.p === null ? "" : percent(row.p)}</td>
        ${row.ids.map((id, i) => html`<td key=${i} class=${id === next ? "came" : ""}>
          <span class="piece">${shown(texts[id] ?? `#${id}`)}</span> ${percent(row.probabilities[i])}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** The rank and the probability of a token, as far as the table of all tokens has them. */
function ofTable({ ids, probabilities }, layer, t, token) {
  const i = ids[layer][t].indexOf(token);
  return { rank: i < 0 ? null : i + 1, p: i < 0 ? null : probabilities[layer][t][i] };
}

/** From which block on a token is the likeliest one. */
function firstOf(rows, layers, name) {
  let from = rows.length;
  while (from > 0 && rows[from - 1].rank === 1) from--;
  if (from === rows.length) return html`After the last block ${name} is not the likeliest token.`;
  const at = named(layers[from]);
  return from ? html`${name} is the likeliest token from ${/^\d+$/.test(at) ? "block " : ""}${at} on.` : html`${name} is the likeliest token everywhere.`;
}
