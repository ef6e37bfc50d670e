// feed-forward: the neurons of a block that a token activates most, and the experts of a mixture.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Effect } from "/web/panels/effect.js";
import { changed, useAnswer, useTrace } from "/web/server/data.js";
import { Picture, colour, heat, shade } from "/web/parts/draw.js";
import { State, nearest } from "/web/parts/show.js";
import { strongestOf } from "/web/parts/numbers.js";
import { counted, number, percent, shown } from "/web/parts/text.js";

const MOST = 16, MOST_ROWS = 60, MOST_EXPERTS = 64;
const NEVER = -3e38; // the score of an expert that the router must not choose

/** Blocks that have a point, and the one of them that is nearest to the chosen block. */
function blockWith(look, at, name) {
  const layers = look.info.blocks.map((_, layer) => layer).filter((layer) => `blocks.${layer}.${name}` in look.info.points);
  return nearest(layers, at.block);
}

function Elsewhere({ layer, at, what }) {
  return layer === at.block ? null : html`<p class="note">Block ${at.block} has no ${what}; this is block ${layer}.</p>`;
}

export const feedforward = {
  id: "feedforward",
  title: "Feed-forward",
  about: "Each vector alone becomes many neurons, passes an activation, and becomes narrow again. No token sees another token here.",
  has: (info) => Object.keys(info.points).some((one) => one.endsWith(".feedforward.hidden")),
  View,
};

function View({ look, width, at, choose, edit }) {
  const layer = blockWith(look, at, "feedforward.hidden"), name = `blocks.${layer}.feedforward.hidden`;
  const state = useTrace(look, { points: [`${name}[tokens=${at.token}]`] }),
    before = useTrace({ ...look, edits: [] }, look.edits.length ? { points: [`${name}[tokens=${at.token}]`] } : {}), values = state.arrays?.[name]?.values;
  return html`<div><${Elsewhere} layer=${layer} at=${at} what="neurons" />
    <${State} state=${state}>${values && html`<${Neurons} values=${values} before=${before.arrays?.[name]?.values} width=${width} layer=${layer} look=${look}
      at=${at} choose=${choose} edit=${edit} />`}<//></div>`;
}

const LONGEST = 512, MOST_ASKED = 32, NAMED = 3; // tokens of a text whose neurons are taken out; neurons of a request; tokens that are named for a neuron

/** What neurons have to do with words: {by(neuron), tokens of the text whose values are largest; says(neuron), tokens that fall most without it at the chosen token}. */
function useWords(look, at, layer, neurons) {
  const name = `blocks.${layer}.feedforward.hidden`, { token } = at, isAsked = look.info.generates && !look.recorded && !look.info.encoder.length && token < Math.min(look.ids.length, LONGEST);
  const columns = useTrace(look, look.recorded ? {} : { points: [`${name}[dims=${neurons}]`] }).arrays?.[name];
  const found = useAnswer(look, "/look/raised", isAsked ? changed(look, { model: look.model, prompt: look.ids.slice(0, token + 1), points: neurons.slice(0, MOST_ASKED).map((one) => `${name}[tokens=${token}; dims=${one}]`) }) : null).value;
  return {
    by: (neuron) => {
      const n = neurons.indexOf(neuron);
      return columns && columns.shape[1] === neurons.length ? strongestOf(Float32Array.from({ length: columns.shape[0] }, (_, t) => columns.row(t)[n]), NAMED).map(([t]) => look.pieces[t]) : [];
    },
    says: (neuron) => found?.raises[neurons.indexOf(neuron)]?.map((one) => found.texts[one]) ?? [],
  };
}

/** The neurons with the largest values; those that are changed stay in the list. */
function strongestNeurons(values, prefix, edits) {
  const order = strongestOf(values, MOST).map(([neuron]) => neuron);
  const touched = edits.map((one) => +(one.point.startsWith(`${prefix}[dims=`) ? one.point.slice(prefix.length + 6, -1) : NaN)).filter((one) => one >= 0
    && !order.includes(one));
  return [...order, ...touched];
}

function Neurons({ values, before, width, layer, look, at, choose, edit }) {
  const prefix = `blocks.${layer}.feedforward.hidden`, order = strongestNeurons(values, prefix, look.edits), words = useWords(look, at, layer, order), list = (some) => some.map((one, n) => html`<span key=${n}>${n > 0 && " "}<span class="piece">${shown(one)}</span></span>`);
  const sorted = values.filter(Number.isFinite).sort(), most = Math.max(Math.abs(sorted[0]), Math.abs(sorted.at(-1)), ...order.map((one) => Math.abs(before?.[one] ?? 0)), 1e-9);
  const paint = (context, w, h) => {
    for (let x = 0; x < w; x++) {
      const value = sorted[Math.min(sorted.length - 1, Math.floor((x / w) * sorted.length))], size = (Math.abs(value) / most) * (h / 2);
      context.fillStyle = colour(value >= 0 ? "plus" : "minus");
      context.fillRect(x, value >= 0 ? h / 2 - size : h / 2, 1, Math.max(size, 0.5));
    }
  };
  return html`<div class="beside"><div><h4>The strongest neurons of block ${layer} at <span class="piece">${shown(look.pieces[at.token] ?? "")}</span></h4>
    ${look.edits.some((one) => one.point.startsWith(`${prefix}[`)) && html`<${Effect} look=${look} at=${at} choose=${choose} />`}
    <table class="bars neurons-table"><thead><tr><th scope="col">neuron</th><th scope="col">value</th>${words.by(order[0]).length > 0 && html`<th scope="col">largest at</th>`}${words.says(order[0]).length > 0 && html`<th scope="col">raises</th>`}${edit && html`<th scope="col" class="act"><span class="hidden">take out</span></th>`}</tr></thead><tbody>${order.map((neuron) => {
      const point = `${prefix}[dims=${neuron}]`, off = look.edits.some((one) => one.point === point);
      return html`<tr key=${neuron}><th scope="row">
        <button type="button" class="quiet" aria-pressed=${at.point === prefix && at.dim === neuron}
        onClick=${() => choose({ block: layer, point: prefix, dim: neuron, key: -1 })}>neuron ${neuron}</button></th>
        <td><${Signed} value=${values[neuron]} before=${before?.[neuron]} most=${most} /></td>
        ${words.by(neuron).length > 0 && html`<td class="words">${list(words.by(neuron))}</td>`}${words.says(neuron).length > 0 && html`<td class="words">${list(words.says(neuron))}</td>`}
        ${edit && html`<td class="act"><button type="button" aria-pressed=${off} aria-label=${`take out neuron ${neuron}`} title="take this neuron out"
          onClick=${() => edit(point, off ? null : { edit: "ablate" })}>⊘</button></td>`}</tr>`;
    })}</tbody></table></div>
    <div><h4>All ${counted(values.length)} neurons, from the smallest to the largest</h4>
      <${Picture} width=${Math.min(width, 420)} height=${110} paint=${paint} of=${[values, width]}
      label=${`${values.length} neurons in order of their values, up to ${number(most)}`} />
      <p class="note">Most neurons are near 0: a few do most of the work for a token. Click a neuron to see its formula, and ⊘ to take it out. “largest at” are the tokens of this text where its value is largest. “raises” are the tokens that become less likely here when the neuron is taken out.</p></div></div>`;
}

/** A number with a bar: to the right of the middle if it is positive, to the left if it is negative. A dashed bar is the value before a change. */
export function Signed({ value, before, most }) {
  const bar = (one, name) => html`<span class=${`signed ${name} ${one < 0 ? "negative" : ""}`}
    style=${{ width: `${((50 * Math.abs(one)) / most).toFixed(1)}%`, [one < 0 ? "right" : "left"]: "50%" }}></span>`;
  return html`${Number.isFinite(before) && before !== value && bar(before, "before")}${Number.isFinite(value) && bar(value, "now")}<span class="num">
    ${value > 0 ? "+" : ""}${number(value)}</span>`;
}

export const experts = {
  id: "experts",
  title: "Experts",
  about: "A router chooses a few feed-forwards, the experts, for each token, and adds their outputs with weights.",
  has: (info) => info.blocks.some((one) => one.mixture),
  View: Experts,
};

function Experts({ look, width, at, choose, edit }) {
  const layers = look.info.blocks.map((one, layer) => (one.mixture ? layer : -1)).filter((layer) => layer >= 0), layer = nearest(layers, at.block),
    name = `blocks.${layer}.feedforward`;
  const state = useTrace(look, { points: [`${name}.experts`, `${name}.expert_weights`, `${name}.router`] }), { arrays } = state,
    scores = arrays?.[`${name}.router`];
  const first = Math.max(0, Math.min(at.token - MOST_ROWS / 2, look.ids.length - MOST_ROWS)),
    some = look.pieces.slice(first, Math.min(first + MOST_ROWS, scores?.shape[0] ?? 0));
  return html`<div><${Elsewhere} layer=${layer} at=${at} what="experts" /><${State} state=${state}>${scores && html`
      <${Chosen} look=${look} at=${at} layer=${layer} chosen=${rowOf(arrays, name, at.token)} count=${scores.shape[1]} edit=${edit} choose=${choose} />
      <h4>The experts of ${scores.shape[0] > MOST_ROWS ? `tokens ${first} to ${first + some.length - 1}` : "all tokens"} in block ${layer}</h4>
        <table class="plain experts-table"><tbody>${some.map((piece, n) => [piece, first + n]).map(([piece, t]) => html`
        <tr key=${t} class=${t === at.token ? "best" : ""}><th scope="row"><button type="button" class="quiet" onClick=${() => choose({ token: t })}>
          <span class="piece">${shown(piece)}</span></button></th><td>
          ${rowOf(arrays, name, t).map(([expert, weight]) => html`<span key=${expert} class="chip">${expert} <b>${percent(weight)}</b></span>`)}</td></tr>`)}
          </tbody></table>
      <h4>The router's scores: tokens from top to bottom, experts from left to right</h4>
        <${Picture} width=${width} height=${Math.min(400, scores.shape[0] * 12)} of=${[scores, width]}
        label=${`the router's scores of ${scores.shape[1]} experts for ${scores.shape[0]} tokens`}
        paint=${(context, w, h) => {
          const some = scores.values.filter((one) => one > NEVER / 2), low = some.reduce((a, b) => Math.min(a, b)),
            high = some.reduce((a, b) => Math.max(a, b));
          heat(context, scores.values, scores.shape[0], scores.shape[1], [0, 0, w, h], shade("paper", "feedforward", low, high));
        }} />`}<//></div>`;
}

/** The experts of a token with their weights, the heaviest first. */
function rowOf(arrays, name, t) {
  const [chosen, weights] = ["experts", "expert_weights"].map((one) => arrays[`${name}.${one}`]);
  return t < chosen.shape[0] ? Array.from(chosen.row(t).subarray(0, MOST_EXPERTS), (expert, i) => [expert, weights.row(t)[i]]).sort((a, b) => b[1] - a[1]) : [];
}

/** The experts of the chosen token; ⊘ keeps the router from choosing one. */
function Chosen({ look, at, layer, chosen, count, edit, choose }) {
  const pointOf = (expert) => `blocks.${layer}.feedforward.router[dims=${expert}]`, isOut = (expert) => look.edits.some((one) => one.point === pointOf(expert));
  const out = Array.from({ length: count }, (_, expert) => expert).filter(isOut), least = look.info.blocks[layer].active_experts || chosen.length;
  const all = [...chosen, ...out.filter((expert) => !chosen.some(([one]) => one === expert)).map((expert) => [expert, NaN])];
  return html`<div><h4>Experts of <span class="piece">${shown(look.pieces[at.token] ?? "")}</span> in block ${layer}</h4><ul class="strongest">
    ${all.map(([expert, weight]) => html`<li key=${expert}>${edit
      ? html`<button type="button" aria-pressed=${isOut(expert)} disabled=${!isOut(expert) && count - out.length <= least}
        title="the router may not choose this expert"
        onClick=${() => edit(pointOf(expert), isOut(expert) ? null : { edit: "ablate", values: NEVER })}>⊘ expert ${expert} <b>
        ${isOut(expert) ? "out" : percent(weight)}</b></button>`
      : html`<span class="chip">expert ${expert} <b>${percent(weight)}</b></span>`}</li>`)}</ul>
    ${out.length > 0 && html`<${Effect} look=${look} at=${at} choose=${choose} />`}</div>`;
}

export const recurrent = {
  id: "recurrent",
  title: "Recurrent layers",
  about: "A recurrent layer keeps a state of fixed size in place of all keys and values: each token changes the state and reads from it.",
  has: (info) => info.blocks.some((one) => one.recurrent),
  View: Recurrent,
};

const TALL = 16, LABEL = 62;

function Recurrent({ look, width, at, choose }) {
  const state = useTrace(look, { norms: ["blocks.*.recurrent.output"] }), names = Object.keys(state.arrays ?? {}),
    layers = names.map((name) => +name.match(/\d+/)[0]), count = Math.max(1, state.arrays?.[names[0]]?.shape[0] ?? 1), cell = (width - LABEL) / count;
  const paint = (context, w) => {
    const most = names.reduce((top, name) => state.arrays[name].values.reduce((a, b) => Math.max(a, b), top), 1e-9), of = shade("paper", "recurrent", 0, most);
    names.forEach((name, r) => {
      context.fillStyle = colour("ink");
      context.fillText(`block ${layers[r]}`, 0, r * TALL + 12);
      heat(context, state.arrays[name].values, 1, count, [LABEL, r * TALL, w - LABEL, TALL - 2], of);
    });
    context.strokeStyle = colour("accent");
    context.strokeRect(LABEL + at.token * cell + 0.5, 0.5, Math.max(cell - 1, 2), names.length * TALL - 2);
    if (layers.includes(at.block)) context.strokeRect(LABEL + 0.5, layers.indexOf(at.block) * TALL + 0.5, w - LABEL - 1, TALL - 3);
  };
  const place = (x, y) => [Math.floor(y / TALL), Math.floor((x - LABEL) / cell)], isInside = (r, t) => r >= 0 && r < names.length && t >= 0 && t < count;
  return html`<div><p class="note">How much each recurrent layer adds to each token: blocks from top to bottom, tokens from left to right. Click a cell to choose both.</p>
    <${State} state=${state}>${names.length > 0 && html`<${Picture} width=${width} height=${names.length * TALL}
      of=${[state.arrays, width, at.token, at.block]} label=${`lengths of what ${names.length} recurrent layers add to ${count} tokens`} paint=${paint}
      at=${(x, y) => { const [r, t] = place(x, y); return isInside(r, t)
        ? `block ${layers[r]} adds ${number(state.arrays[names[r]].values[t])} to ${shown(look.pieces[t] ?? "")}` : ""; }}
      onPick=${(x, y) => { const [r, t] = place(x, y); if (isInside(r, t)) choose({ block: layers[r], token: t }); }} />`}<//></div>`;
}
