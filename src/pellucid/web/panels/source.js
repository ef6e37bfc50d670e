// source: what each token of the answer looks at in the source (cross attention), and what the source looks at in itself.

import { html, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { HeadMap } from "/web/panels/attention.js";
import { Effect } from "/web/panels/effect.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, fitted, heat, shade } from "/web/parts/draw.js";
import { useStop } from "/web/parts/keys.js";
import { strongestOf } from "/web/parts/numbers.js";
import { Looks, strongest } from "/web/parts/pattern.js";
import { Choose, State } from "/web/parts/show.js";
import { percent, shown } from "/web/parts/text.js";

const CROSS = "blocks.*.cross.pattern", OWN = "encoder.blocks.*.attention.pattern";
const MODES = { all: "all heads of all blocks", block: "all heads of one block", head: "one head" };
const LISTED = 8, LABEL = 92, CELL = 22, MOST_SIDE = 640, LEAST_NAMED = 10, LETTER = 7; // tokens in the list; pixels of the map's labels, cells and width; of the least cell with a label, and of a letter
const MOST_WEIGHTS = 1 << 22; // of a map of several heads

export const source = {
  id: "source",
  title: "Source",
  about: "The encoder reads the source at once. Then each token of the answer looks at the tokens of the source (cross attention), in each head of each block.",
  has: (info) => info.encoder?.length > 0,
  View,
};

function View({ look, width, at, choose, edit }) {
  const [mode, setMode] = useState("all"), token = Math.min(at.token, look.ids.length - 1), place = { token, block: Math.min(at.block, look.info.blocks.length - 1), head: at.head };
  const found = useCross(look, at, place, mode);
  if (!look.source) return html`<p class="empty">The file has no source.</p>`;
  return html`<div><div class="bar" role="group" aria-label="heads">${Object.entries(MODES).map(([name, title]) => html`
      <button type="button" key=${name} aria-pressed=${name === mode} onClick=${() => setMode(name)}>${title}</button>`)}
      ${mode !== "all" && html`<${Choose} label="block" value=${place.block} most=${look.info.blocks.length - 1} onChange=${(block) => choose({ block })} />`}
      ${mode === "head" && html`<${Choose} label="head" value=${place.head} most=${look.info.blocks[place.block].heads - 1} onChange=${(head) => choose({ head })} />`}</div>
    <${Cross} look=${look} found=${found} width=${width} at=${at} place=${place} mode=${mode} edit=${edit}
      choose=${choose} pick=${(source) => choose({ source, ...(mode === "head" && weightOf(place)) })}
      pickHead=${({ layer, head }) => { setMode("head"); choose({ block: layer, head, source: found.wanted, ...weightOf({ block: layer, head }) }); }} />
    <${Own} look=${look} width=${width} token=${found.wanted} choose=${choose} mode=${mode} /></div>`;
}

/** One weight of a head, whose formula the card of numbers shows, as a part of the place. */
function weightOf({ block, head }) {
  return { point: `blocks.${block}.cross.pattern`, head, dim: -1, key: -1 };
}

/** The rows of all heads at one position: [{layer, head, row}]. Rows that a file has not recorded are left out. */
function rowsOf(arrays, position) {
  return Object.entries(arrays ?? {}).flatMap(([name, one]) => Array.from({ length: position < one.shape[1] ? one.shape[0] : 0 }, (_, head) => (
    { layer: +name.match(/blocks\.(\d+)\./)[1], head, row: one.row(head, position) }))).filter(({ row }) => !Number.isNaN(row[0]));
}

/** The rows that a mode shows of a place. */
function chosen(rows, mode, { block, head }) {
  return rows.filter((one) => mode === "all" || (one.layer === block && (mode === "block" || one.head === head)));
}

/** The mean of rows; undefined if there are none. */
function meanOf(rows) {
  if (!rows.length) return undefined;
  const made = new Float32Array(rows[0].row.length);
  for (const { row } of rows) for (let at = 0; at < made.length; at++) made[at] += row[at] / rows.length;
  return made;
}

function titleOf(mode, { block, head }) {
  return { all: "all heads", block: `block ${block}`, head: `block ${block}, head ${head}` }[mode];
}

/** The attention of the chosen token to the source: {state, rows} of all heads, their mean `row`, and the token `wanted` of the source. */
function useCross(look, at, { token, block, head }, mode) {
  const { recorded } = look, state = useTrace(look, { points: [recorded ? CROSS : `${CROSS}[tokens=${token}]`] });
  const rows = useMemo(() => rowsOf(state.arrays, recorded ? token : 0), [state.arrays, token]), row = useMemo(() => meanOf(chosen(rows, mode, { block, head })), [rows, mode, block, head]);
  return { state, rows, row, wanted: at.source >= 0 && at.source < look.source?.ids.length ? at.source : row ? strongestOf(row, 1)[0][0] : 0 };
}

/** What a token of the answer looks at in the source. */
function Cross({ look, found: { state, rows, row, wanted }, width, at, place, mode, edit, choose, pick, pickHead }) {
  const { source } = look, { token } = place, piece = (text) => html`<span class="piece">${shown(text)}</span>`;
  const next = look.pieces[token + 1], weights = rows.map((one) => ({ layer: one.layer, head: one.head, weight: one.row[wanted] }));
  const point = `blocks.${place.block}.cross.heads[heads=${place.head}]`, isOut = look.edits.some((one) => one.point === point && one.edit === "ablate");
  return html`<${State} state=${state}>${row ? html`
    <h4>What the model looks at after ${piece(look.pieces[token] ?? "")}, to write ${next === undefined ? "the next token" : piece(next)} (${titleOf(mode, place)})</h4>
    <p class="note">${mode === "head" ? "A stronger colour is a larger weight. Choose a token of the source: a card shows the formula of its weight." : "A stronger colour is a larger weight, on average over the heads."} Choose another token of the answer in the text above.</p>
    <${Shaded} pieces=${source.pieces} weights=${row} chosen=${wanted} onChoose=${pick} />
    <ol class="near" aria-label="the tokens with the largest weights">${strongest(row, LISTED, 0).map(([to, weight]) => html`<li key=${to}><button type="button" class="quiet" aria-pressed=${to === wanted} onClick=${() => pick(to)}>
      ${piece(source.pieces[to])}</button> <span class="id">${to}</span> <span class="num" data-weight=${weight.toPrecision(6)}>${percent(weight)}</span></li>`)}</ol>
    ${mode === "head" && html`<div class="bar">${edit && html`<button type="button" aria-pressed=${isOut} onClick=${() => edit(point, isOut ? null : { edit: "ablate" })}>⊘ take out this head</button>`}
      ${isOut && html`<${Effect} look=${look} at=${{ ...at, token }} choose=${choose} />`}</div>`}
    <h4>Which heads look from ${piece(look.pieces[token] ?? "")} at ${piece(source.pieces[wanted])} in the source?</h4>
    <${HeadMap} weights=${weights} blocks=${look.info.blocks.length} place=${place} width=${width} ink="cross" onPick=${pickHead}
      label=${`weights of all heads from ${shown(look.pieces[token] ?? "")} to ${shown(source.pieces[wanted])} in the source`} />
    <${Alignment} look=${look} width=${width} mode=${mode} place=${place} wanted=${wanted} choose=${choose} />` : html`<p class="empty">The attention of this token to the source was not recorded.</p>`}<//>`;
}

/** Tokens with weights, as a text whose tokens are darker where the weight is larger. */
function Shaded({ pieces, weights, chosen: wanted, onChoose }) {
  const stop = useStop("button", pieces.length);
  return html`<div class="tokens shaded" role="group" aria-label="the source" ...${stop.on}>${pieces.map((one, at) => html`<button type="button" class="token" key=${at} tabindex=${at === stop.at ? 0 : -1} aria-pressed=${at === wanted}
    aria-label=${`${shown(one)}, ${percent(weights[at])}`} title=${percent(weights[at])} style=${{ background: `color-mix(in srgb, var(--cross) ${(50 * Math.sqrt(weights[at])).toFixed(0)}%, var(--paper))` }} onClick=${() => onChoose(at)}>${shown(one)}</button>`)}</div>`;
}

/** The map of all tokens of the answer and all tokens of the source. */
function Alignment({ look, width, mode, place, wanted, choose }) {
  const { source, recorded, info } = look, size = info.blocks.reduce((sum, one) => sum + (one.heads ?? 0), 0) * look.ids.length * source.ids.length, isLarge = mode === "all" && !recorded && size > MOST_WEIGHTS;
  const name = `blocks.${place.block}.cross.pattern`, one = mode === "block" ? name : `${name}[heads=${place.head}]`;
  const state = useTrace(look, isLarge ? {} : { points: [recorded || mode === "all" ? CROSS : one] });
  const map = useMemo(() => {
    const all = Object.entries(state.arrays ?? {}), count = all[0]?.[1].shape[1] ?? 0, made = [];
    for (let t = 0; t < count; t++) {
      const some = rowsOf(state.arrays, t), mean = meanOf(mode === "head" && !recorded ? some : chosen(some, mode, place));
      if (!mean) break;
      made.push(mean);
    }
    return made;
  }, [state.arrays, mode, place.block, place.head]);
  const title = html`<h4>The answer and the source (${titleOf(mode, place)})</h4>`;
  if (isLarge) return html`${title}<p class="note">The texts are too long for a map of all heads: choose a block or a head.</p>`;
  return html`${title}<p class="note">Row: the token of the answer that looks. Column: the token of the source that it looks at.</p>
    <${State} state=${state}>${map.length > 0 && html`<${Map} rows=${map} look=${look} width=${width} token=${place.token} wanted=${wanted} choose=${choose} />`}<//>`;
}

function Map({ rows, look, width, token, wanted, choose }) {
  const { pieces, source } = look, columns = source.ids.length, count = rows.length, room = Math.min(width, MOST_SIDE) - LABEL;
  const wide = Math.min(CELL, room / columns), tall = Math.min(CELL, Math.max(2, MOST_SIDE / count)), left = LABEL,
    top = wide >= LEAST_NAMED ? Math.min(LABEL, 14 + LETTER * Math.max(...source.pieces.map((one) => one.length))) : 4;
  const values = useMemo(() => Float32Array.from({ length: count * columns }, (_, at) => rows[Math.floor(at / columns)][at % columns]), [rows]);
  const paint = (context) => {
    const of = shade("paper", "cross");
    heat(context, values, count, columns, [left, top, columns * wide, count * tall], (weight) => of(Math.sqrt(weight)));
    context.strokeStyle = colour("accent");
    context.strokeRect(left + 0.5, top + token * tall + 0.5, columns * wide - 1, Math.max(tall, 2) - 1);
    context.fillStyle = colour("ink");
    if (tall >= LEAST_NAMED) for (let t = 0; t < count; t++) context.fillText(fitted(context, shown(pieces[t] ?? ""), LABEL - 6), 0, top + (t + 0.5) * tall + 4);
    if (wide < LEAST_NAMED) return;
    source.pieces.forEach((one, s) => {
      context.save();
      context.translate(left + (s + 0.5) * wide + 4, top - 4);
      context.rotate(-Math.PI / 2);
      context.fillText(fitted(context, shown(one), top - 8), 0, 0);
      context.restore();
    });
  };
  const cell = (x, y) => [Math.floor((y - top) / tall), Math.floor((x - left) / wide)], isIn = ([t, s]) => t >= 0 && t < count && s >= 0 && s < columns;
  const said = ([t, s]) => `${shown(pieces[t] ?? "")} looks at ${shown(source.pieces[s])}: ${percent(values[t * columns + s])}`;
  return html`<${Picture} width=${left + columns * wide} height=${top + count * tall} paint=${paint} of=${[values, token, width]} at=${(x, y) => (isIn(cell(x, y)) ? said(cell(x, y)) : "")}
    onPick=${(x, y) => { const found = cell(x, y); if (isIn(found)) choose({ token: found[0], source: found[1], key: -1 }); }}
    slider=${{ value: Math.min(token, count - 1), most: count - 1, text: said([Math.min(token, count - 1), wanted]), onChange: (to) => choose({ token: to, key: -1 }) }}
    label=${`attention to the source: each of ${count} tokens of the answer is a row, the ${columns} tokens of the source are columns`} />`;
}

/** What a token of the source looks at in the source, in the encoder. */
function Own({ look, width, token, choose, mode }) {
  const { source, info, recorded } = look, [place, setPlace] = useState({ block: info.encoder.length - 1, head: 0 });
  const state = useTrace(look, { points: [recorded ? OWN : `${OWN}[tokens=${token}]`] }), rows = useMemo(() => rowsOf(state.arrays, recorded ? token : 0), [state.arrays, token]);
  const row = useMemo(() => meanOf(chosen(rows, mode, place)), [rows, mode, place]), set = (part) => setPlace({ ...place, ...part });
  return html`<h4>Inside the encoder: the source looks at itself</h4>
    ${mode !== "all" && html`<div class="bar"><${Choose} label="encoder block" value=${place.block} most=${info.encoder.length - 1} onChange=${(block) => set({ block })} />
      ${mode === "head" && html`<${Choose} label="encoder head" value=${place.head} most=${(info.encoder[place.block].heads ?? 1) - 1} onChange=${(head) => set({ head })} />`}</div>`}
    <${State} state=${state}>${row ? html`<${Looks} row=${row} faint=${null} pieces=${source.pieces} token=${token} wanted=${token} width=${width} where=${`the encoder, ${titleOf(mode, place)}`}
      note="Click another token of the source to see what it looks at." pick=${(to) => choose({ source: to })} />` : html`<p class="empty">The attention of the encoder was not recorded.</p>`}<//>`;
}
