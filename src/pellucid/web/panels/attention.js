// attention: how much every head of the model looks from one token to another, and what one head does in the whole text.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Effect } from "/web/panels/effect.js";
import { changed, useAnswer, useTrace } from "/web/server/data.js";
import { usePattern } from "/web/picture/flow.js";
import { isHeadOut } from "/web/picture/layout.js";
import { Picture, colour, heat, shade } from "/web/parts/draw.js";
import { isBrowsers } from "/web/parts/keys.js";
import { Heads, Looks, MOST_WORDS, Matrix } from "/web/parts/pattern.js";
import { State, nearest } from "/web/parts/show.js";
import { percent, shown } from "/web/parts/text.js";

const LISTED = 10, CELL = 34, MAP_LEFT = 36, MAP_TOP = 32; // heads in the list; widest cell of the map and its borders

export const attention = {
  id: "attention",
  title: "Attention",
  about: "Each head compares a token's query with the keys of the tokens that it sees, and takes their values in these proportions.",
  has: (info) => info.blocks.some((one) => one.heads),
  View,
};

function View({ look, width, at, choose, edit }) {
  const layers = look.info.blocks.map((one, layer) => (one.heads ? layer : -1)).filter((layer) => layer >= 0), layer = nearest(layers, at.block);
  const token = Math.min(at.token, Math.max(0, look.ids.length - 1)), head = Math.min(at.head, look.info.blocks[layer].heads - 1),
    place = { ...at, token, block: layer, head };
  const found = usePattern(look, layer, head, token), row = found.row?.(token),
    key = at.key >= 0 && at.key < look.ids.length ? at.key : row ? strongestOther(row, token) : -1;
  const point = `blocks.${layer}.attention.heads[heads=${head}]`, isOut = look.edits.some((one) => one.point === point && one.edit === "ablate"), hasNoEffect = isHeadOut(look.edits, layer, "attention", head);
  if (look.ids.length && !(`blocks.${layer}.attention.pattern` in look.info.points)) {
    return html`<p class="error" role="alert">${look.info.notice || `The attention pattern of block ${layer} was not recorded.`}</p>`;
  }
  return html`<div>${layer !== at.block && html`<p class="note">Block ${at.block} has no attention; this is block ${layer}.</p>`}
    <${State} state=${found.state}>${row && html`<${Looks} row=${row} faint=${found.count <= MOST_WORDS ? found.matrix.values : null} pieces=${look.pieces}
      token=${token} wanted=${key} width=${width} where=${`block ${layer}, head ${head}`} hasNoEffect=${hasNoEffect}
      note=${`${hasNoEffect ? "A change takes this head out: its weights are computed, but they have no effect. " : ""}Click another token to see which heads look at it.`}
      pick=${(one) => choose({ key: one, block: layer, head, point: `blocks.${layer}.attention.pattern`, dim: -1 })} />`}<//>
    ${key >= 0 && !look.recorded && !look.info.encoder.length && html`<${Specific} look=${look} place=${place} wanted=${key} choose=${choose} />`}
    <div>${key >= 0 && html`<${AllHeads} look=${look} place=${place} wanted=${key} width=${width} choose=${choose} />`}</div>
    ${found.row && html`<div class="bar"><h4>Block ${layer}, head ${head}</h4>
      ${edit && html`<button type="button" aria-pressed=${isOut}
      onClick=${() => edit(point, isOut ? null : { edit: "ablate" })}>⊘ take out this head</button>`}
      ${isOut && html`<${Effect} look=${look} at=${place} choose=${choose} />`}</div>
      <div class="beside"><${Matrix} pattern=${found.matrix} count=${found.count} pieces=${look.pieces} width=${width} token=${token}
        onPick=${(one) => choose({ token: one, key: -1 })} label=${`block ${layer}, head ${head}`} />
      <div><h4>All heads of block ${layer}</h4><${Heads} pattern=${found.heads} chosen=${head} onChoose=${(one) => choose({ head: one })} block=${layer} />
        </div></div>`}</div>`;
}

const FOUND = 6, LONGEST = 512; // heads of the list; tokens of a text that can be searched

/** Heads that read the key for the chosen token more than other tokens read it, and what the model says without each. */
function Specific({ look, place, wanted, choose }) {
  const { token } = place, ids = look.info.generates ? look.ids.slice(0, token + 1) : look.ids, isSeen = wanted < ids.length && ids.length > 1 && ids.length <= LONGEST;
  const state = useAnswer(look, "/look/heads", isSeen ? changed(look, { model: look.model, prompt: ids, position: token, key: wanted, top: FOUND }) : null), found = state.value, name = (t) => html`<span class="piece">${shown(look.pieces[t] ?? "")}</span>`;
  if (!isSeen) return null;
  const kept = found?.heads.filter((one) => one.weight - one.mean > 0.05) ?? [], says = found?.text !== undefined;
  return html`<div class="specific"><h4>Heads that read ${name(wanted)} for ${name(token)} more than for other tokens</h4><${State} state=${{ ...state, arrays: found }}>${found && (kept.length === 0 ? html`<p class="note">This model has no such head.</p>`
    : html`<table class="plain"><thead><tr><th scope="col">head</th><th scope="col" class="num">weight</th><th scope="col" class="num">mean elsewhere</th><th scope="col">most elsewhere</th>${says && html`<th scope="col" class="num">${shown(found.text)} without it</th>`}</tr></thead>
      <tbody>${kept.map((one) => html`<tr key=${`${one.layer}.${one.head}`} data-head=${`${one.layer}.${one.head}`} data-score=${one.weight - one.mean} data-without=${one.without}><th scope="row"><button type="button" class="quiet" onClick=${() => choose({ block: one.layer, head: one.head, key: wanted, point: `blocks.${one.layer}.attention.pattern`, dim: -1 })}>block ${one.layer}, head ${one.head}</button></th>
        <td class="num">${percent(one.weight)}</td><td class="num">${percent(one.mean)}</td><td>${one.elsewhere.filter(([, weight]) => weight > 0.01).map(([row, weight], n) => html`${n > 0 && ", "}${name(row)} ${percent(weight)}`)}</td>${says && html`<td class="num">${percent(one.without)}</td>`}</tr>`)}</tbody></table>
      ${says && html`<p class="note">After ${name(token)}, the model gives ${shown(found.text)} ${percent(found.probability)}; the last column is the same without the head.</p>`}`)}<//></div>`;
}

/** The token that a row of weights has most of, without the token itself; -1 if there is no other. */
function strongestOther(row, token) {
  let best = -1;
  row.forEach((weight, at) => at !== token && weight > (best < 0 ? 0 : row[best]) && (best = at));
  return best;
}

/** The weights of all heads from the chosen token to one key: [{layer, head, weight}]. A file has whole patterns. */
function weightsOf(arrays, look, token, wanted) {
  return look.info.blocks.flatMap(({ heads }, layer) => {
    const one = heads && arrays[`blocks.${layer}.attention.pattern`];
    if (!one) return [];
    const t = one.shape[1] === 1 ? 0 : token;
    return Array.from({ length: one.shape[0] }, (_,
      head) => ({ layer, head, weight: (t < one.shape[1] && wanted < one.shape[2] && one.row(head, t)[wanted]) || 0 }));
  });
}

/** The map of all heads, and the list of those that look most from the chosen token to the key. */
function AllHeads({ look, place, wanted, width, choose }) {
  const { token } = place, state = useTrace(look, { points: [`blocks.*.attention.pattern${look.recorded ? "" : `[tokens=${token}]`}`] });
  const weights = useMemo(() => (state.arrays ? weightsOf(state.arrays, look, token, wanted) : []), [state.arrays, token, wanted]),
    best = [...weights].sort((a, b) => b.weight - a.weight).slice(0, LISTED);
  const [from, to] = [token, wanted].map((one) => shown(look.pieces[one] ?? "")),
    pick = ({ layer, head }) => choose({ block: layer, head, key: wanted, point: `blocks.${layer}.attention.pattern`, dim: -1 });
  const isSeen = wanted <= token || look.info.blocks.some((one) => one.heads && one.causal === false);
  const title = html`<h4>Which heads look from <span class="piece">${from}</span> at <span class="piece">${to}</span>?</h4>`;
  if (!isSeen) return html`<div>${title}<p class="empty">None: <span class="piece">${from}</span> does not see the tokens after it.</p></div>`;
  return html`${title}
    <${State} state=${state}>${weights.length > 0 && html`<${HeadMap} weights=${weights} blocks=${look.info.blocks.length} place=${place} width=${width}
      onPick=${pick} label=${`weights of all heads from ${from} to ${to}`} />
      <ol class="strongest" aria-label="the strongest heads">
        ${best.map((one) => html`<li key=${`${one.layer}-${one.head}`}>
        <button type="button" aria-pressed=${one.layer === place.block && one.head === place.head}
        onClick=${() => pick(one)}>block ${one.layer}, head ${one.head} <b>${percent(one.weight)}</b></button></li>`)}</ol>`}<//>`;
}

/** A cell for each head: blocks from left to right, heads from top to bottom. */
export function HeadMap({ weights, blocks, place, width, onPick, label, ink = "attention" }) {
  const heads = Math.max(...weights.map((one) => one.head)) + 1, wide = Math.min(CELL, Math.max(6, (width - MAP_LEFT) / blocks)),
    tall = Math.max(7, Math.min(20, 260 / heads));
  const { cells, known } = useMemo(() => {
    const made = new Float32Array(blocks * heads).fill(NaN), found = new Map();
    for (const one of weights) {
      made[one.head * blocks + one.layer] = one.weight;
      found.set(one.head * blocks + one.layer, one);
    }
    return { cells: made, known: found };
  }, [weights, blocks, heads]);
  const chosen = known.get(place.head * blocks + place.block), right = MAP_LEFT + blocks * wide, step = Math.max(1, Math.ceil(22 / wide)),
    stepDown = Math.max(1, Math.ceil(12 / tall));
  const paint = (context) => {
    const of = shade("paper", ink);
    heat(context, cells, heads, blocks, [MAP_LEFT, MAP_TOP, blocks * wide, heads * tall], (weight) => (Number.isNaN(weight) ? 0 : of(weight)));
    context.fillStyle = colour("faint");
    for (let layer = 0; layer < blocks; layer += step) context.fillText(String(layer), MAP_LEFT + layer * wide + 2, MAP_TOP - 5);
    context.fillText("block", MAP_LEFT + 2, 11);
    context.fillText("head", 2, MAP_TOP - 5);
    for (let head = 0; head < heads; head += stepDown) context.fillText(String(head), 8, MAP_TOP + (head + 0.5) * tall + 4);
    context.strokeStyle = colour("line");
    context.strokeRect(MAP_LEFT + 0.5, MAP_TOP + 0.5, blocks * wide - 1, heads * tall - 1);
    if (!chosen) return;
    context.strokeStyle = colour("accent");
    context.lineWidth = 2;
    context.strokeRect(MAP_LEFT + chosen.layer * wide, MAP_TOP + chosen.head * tall, wide, tall);
  };
  const find = (x, y) => known.get(Math.floor((y - MAP_TOP) / tall) * blocks + Math.floor((x - MAP_LEFT) / wide)),
    said = (one) => (one ? `block ${one.layer}, head ${one.head}: ${percent(one.weight)}` : "");
  const onKeyDown = (event) => {
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (across === undefined || isBrowsers(event)) return;
    event.preventDefault();
    event.stopPropagation();
    for (let layer = place.block + across, head = place.head + down; layer >= 0 && layer < blocks && head >= 0 && head < heads; layer += across, head += down) {
      const one = known.get(head * blocks + layer);
      if (one) return onPick(one);
    }
  };
  return html`<div class="head-map" onKeyDownCapture=${onKeyDown}>
    <p class="note">A cell for each head; a dark cell is a large weight. Click a cell to choose the head.</p>
    <${Picture} width=${right} height=${MAP_TOP + heads * tall} paint=${paint} of=${[cells, place.block, place.head, width]} at=${(x, y) => said(find(x, y))}
      label=${label}
      onPick=${(x, y) => { const one = x >= MAP_LEFT && x < right && find(x, y); if (one) onPick(one); }}
      slider=${{ value: place.block * heads + place.head, most: blocks * heads - 1, text: said(chosen),
        onChange: (to) => { const one = known.get((to % heads) * blocks + Math.floor(to / heads)); if (one) onPick(one); } }} /></div>`;
}
