// logits → temperature → top-k → top-p → draw, computed here from the recorded logits.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useAnswer, useTrace } from "/web/server/data.js";
import { Chain } from "/web/parts/chain.js";
import { Slider, State } from "/web/parts/show.js";
import { counted, number, percent, shown } from "/web/parts/text.js";

const MOST = 20;

export const sampling = {
  id: "sampling",
  title: "Sampling",
  about: "The last vector gives a score, the logit, to every token. The softmax makes probabilities of the scores; temperature, top-k and top-p decide which tokens may be drawn.",
  has: (info) => info.generates,
  View,
};

/**
 * Probabilities after temperature, top-k and top-p, by token, the likeliest first; the first `most` of them. Only the first
 * `vocabulary` logits stand for tokens; the model's own probabilities are the softmax of all. `kept` of the result is the
 * number of tokens that can be drawn.
 */
export function chain(logits, vocabulary, { temperature, topK, topP }, most = Infinity) {
  const real = logits.subarray(0, vocabulary), isShort = topK > 0 && Math.max(topK, most) < vocabulary, order = isShort ? largest(real, Math.max(topK, most)) : sorted(real.keys(), real);
  const top = logits[order[0]], heat = (one) => (temperature > 0 ? Math.exp((logits[one] - top) / temperature) : +(one === order[0]));
  let sum = 0, warmSum = 0;
  for (const one of logits) sum += Math.exp(one - top);
  if (temperature > 0) for (const one of real) warmSum += Math.exp((one - top) / temperature);
  else warmSum = 1;
  const warm = order.map((one) => heat(one) / warmSum);
  let kept = topK > 0 ? Math.min(topK, order.length) : order.length, mass = 0;
  const within = warm.slice(0, kept).reduce((all, p) => all + p, 0);
  if (topP < 1) {
    let count = 0;
    while (count < kept && mass < topP * within) mass += warm[count++];
    kept = Math.max(count, 1);
  }
  const share = warm.slice(0, kept).reduce((all, p) => all + p, 0);
  const rows = order.slice(0, most).map((token, i) => ({ token, logit: logits[token], plain: Math.exp(logits[token] - top) / sum, warm: warm[i], last: i < kept ? warm[i] / share : 0 }));
  return Object.assign(rows, { kept: warm.slice(0, kept).filter((p) => p > 0).length });
}

function sorted(tokens, logits) {
  return Array.from(tokens).sort((a, b) => logits[b] - logits[a] || a - b);
}

/** The tokens of the `count` largest logits, in order: much faster than to sort all. */
function largest(logits, count) {
  const least = logits.slice().sort()[logits.length - count], found = [];
  logits.forEach((one, token) => one >= least && found.push(token));
  return sorted(found, logits).slice(0, count);
}

function plain(value) {
  return Number.isFinite(value) ? value : undefined;
}

/** The settings that the picture and the panel draw with: those of the sliders, else of the form or the file. */
export function settingsOf(look, at) {
  const setting = (name, usual) => (at[name] >= 0 ? at[name] : look.form?.[name] ?? plain(look.recorded?.facts.options?.[name]) ?? usual);
  return { temperature: setting("temperature", 0.8), topK: setting("top_k", 40), topP: setting("top_p", 0.95) };
}

function View({ look, at, choose }) {
  const { names } = look, chainOf = look.recorded?.facts.chain, { temperature, topK, topP } = settingsOf(look, at);
  const name = "project.logits", state = useTrace(look, { points: [`${name}[tokens=${at.token}]`] });
  const logits = state.arrays?.[name]?.values;
  const rows = useMemo(() => (logits ? chain(logits, look.info.vocabulary, { temperature, topK, topP }, MOST) : []), [state.arrays, temperature, topK, topP]);
  const named = useAnswer(look, "/look/pieces", rows.length ? { model: look.model, ids: rows.map((one) => one.token) } : null);
  const nameOf = (token, i) => names[token] ?? named.value?.pieces[i];
  return html`<div><p class="note">What may follow <span class="piece">${shown(look.pieces[at.token] ?? "")}
    </span>. The sliders change the picture, not the next run; for the next run use Settings. Penalties and other steps of the chain are not shown.</p>
    <${Chain} steps=${chainOf ?? []} />
    <div class="sliders">
      <${Slider} label="temperature" value=${temperature} low=${0} high=${2} step=${0.05} onChange=${(temperature) => choose({ temperature })} shown=${temperature.toFixed(2)} />
      <${Slider} label="top-k" value=${topK} low=${0} high=${100} step=${1} onChange=${(top_k) => choose({ top_k })} shown=${topK || "all"} />
      <${Slider} label="top-p" value=${topP} low=${0.05} high=${1} step=${0.01} onChange=${(top_p) => choose({ top_p })} shown=${topP.toFixed(2)} />
    </div>
    <${State} state=${state}>${rows.length > 0 && html`<p role="status" class="note">
      ${counted(rows.kept)} of ${counted(Math.min(logits.length, look.info.vocabulary))} tokens may be drawn.</p>
      <table class="bars" aria-busy=${!!named.waiting}><thead><tr><th scope="col">token</th>${["logit", "softmax", "with the tempera\u00adture", "after the cuts"].map((one) => html`<th scope="col" class="num" key=${one}>${one}</th>`)}</tr></thead>
      <tbody>${rows.map((one, i) => html`<tr key=${one.token} class=${one.last > 0 ? "" : "out"}><th scope="row"><span class="piece">${nameOf(one.token, i) === undefined ? (named.waiting ? "…" : `#${one.token}`) : shown(nameOf(one.token, i))}</span></th><td class="num">${number(one.logit)}</td>
        ${[one.plain, one.warm, one.last].map((p, stepAt) => html`<td key=${stepAt} class="num">
          <span class="filled green" style=${{ width: `${Math.max(p * 100, 0.5).toFixed(1)}%` }}></span><span>${percent(p)}</span></td>`)}</tr>`)}
          </tbody></table>`}<//></div>`;
}
