// logits → temperature → top-k → top-p → draw, computed here from the recorded logits.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useAnswer, useTrace } from "/web/data.js";
import { Slider, State, Tokens } from "/web/show.js";
import { number, percent, shown } from "/web/text.js";

const MOST = 20;

export const sampling = {
  id: "sampling",
  title: "Logits and sampling",
  about: "The last vector becomes a score for every token; the softmax makes probabilities of them, and the chain decides which may be drawn.",
  has: (info) => info.generates,
  View,
};

/**
 * Probabilities after temperature, top-k and top-p, by token, the likeliest first. Only the first `vocabulary` logits stand
 * for tokens; the model's own probabilities are the softmax of all.
 */
export function chain(logits, vocabulary, { temperature, topK, topP }) {
  const order = Array.from(logits.subarray(0, vocabulary).keys()).sort((a, b) => logits[b] - logits[a]), top = logits[order[0]];
  const sum = logits.reduce((all, one) => all + Math.exp(one - top), 0), plain = order.map((one) => Math.exp(logits[one] - top) / sum);
  const warm = temperature > 0 ? softmax(order.map((one) => (logits[one] - top) / temperature)) : order.map((_, i) => (i ? 0 : 1));
  let kept = topK > 0 ? Math.min(topK, order.length) : order.length, mass = 0;
  const within = warm.slice(0, kept).reduce((sum, p) => sum + p, 0);
  if (topP < 1) {
    let count = 0;
    while (count < kept && mass < topP * within) mass += warm[count++];
    kept = Math.max(count, 1);
  }
  const left = warm.slice(0, kept).reduce((sum, p) => sum + p, 0);
  return order.map((token, i) => ({ token, logit: logits[token], plain: plain[i], warm: warm[i], last: i < kept ? warm[i] / left : 0 }));
}

function plain(value) {
  return Number.isFinite(value) ? value : undefined;
}

function softmax(scores) {
  const raised = scores.map(Math.exp), sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((one) => one / sum);
}

function View({ look, at, choose }) {
  const given = (name, usual) => (at[name] >= 0 ? at[name] : look.form?.[name] ?? plain(look.recorded?.facts.options?.[name]) ?? usual), { names } = look, chainOf = look.recorded?.facts.chain;
  const temperature = given("temperature", 0.8), topK = given("top_k", 40), topP = given("top_p", 0.95);
  const name = "project.logits", state = useTrace(look, { points: [`${name}[tokens=${at.token}]`] });
  const logits = state.arrays?.[name]?.values;
  const rows = useMemo(() => (logits ? chain(logits, look.info.vocabulary, { temperature, topK, topP }) : []), [state.arrays, temperature, topK, topP]);
  const shownRows = rows.slice(0, MOST), named = useAnswer(look, "/look/pieces", rows.length ? { model: look.model, ids: shownRows.map((one) => one.token) } : null);
  const nameOf = (token, i) => names[token] ?? named.value?.pieces[i];
  const kept = rows.filter((one) => one.last > 0).length;
  return html`<div><p class="note">Logits after one token. The sliders change only what is shown here; penalties and other steps of the chain are left out.</p>
    ${chainOf?.length > 0 && html`<p class="note">The chain of this run: ${chainOf.map((step) => `${step.name} (${Object.entries(step).filter(([key]) => key !== "name").map(([key, value]) => `${key} ${value}`).join(", ")})`).join(" → ")}</p>`}
    <${Tokens} pieces=${look.pieces} chosen=${at.token} onChoose=${(token) => choose({ token })} label="token whose next token is drawn" />
    <div class="sliders">
      <${Slider} label="temperature" value=${temperature} low=${0} high=${2} step=${0.05} onChange=${(temperature) => choose({ temperature })} shown=${temperature.toFixed(2)} />
      <${Slider} label="top-k" value=${topK} low=${0} high=${100} step=${1} onChange=${(top_k) => choose({ top_k })} shown=${topK || "all"} />
      <${Slider} label="top-p" value=${topP} low=${0.05} high=${1} step=${0.01} onChange=${(top_p) => choose({ top_p })} shown=${topP.toFixed(2)} />
    </div>
    <${State} state=${state}>${rows.length > 0 && html`<p role="status" class="note">${kept.toLocaleString()} of ${rows.length.toLocaleString()} tokens can be drawn.</p>
      <table class="bars"><thead><tr><th>token</th><th>logit</th><th>model</th><th>temperature</th><th>can be drawn</th></tr></thead>
      <tbody>${shownRows.map((one, i) => html`<tr key=${one.token} class=${one.last > 0 ? "" : "out"}><th scope="row"><span class="piece">${nameOf(one.token, i) === undefined ? `#${one.token}` : shown(nameOf(one.token, i))}</span></th><td class="num">${number(one.logit)}</td>
        ${[one.plain, one.warm, one.last].map((p, stepAt) => html`<td key=${stepAt}><span class="filled" style=${{ width: `${Math.max(p * 100, 0.5).toFixed(1)}%` }}></span><span class="num">${percent(p)}</span></td>`)}</tr>`)}</tbody></table>`}<//></div>`;
}
