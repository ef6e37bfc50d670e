// Why this token and not the other: the tokens, heads and neurons without which it would lead less, each taken out in a run of its own.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, useAnswer } from "/web/server/data.js";
import { link } from "/web/picture/marks.js";
import { spokenOf } from "/web/picture/lens.js";
import { Part } from "/web/picture/svg.js";
import { counted, percent, shown } from "/web/parts/text.js";

const LONGEST = 512, TOKENS = 6, WIDE = 64, LETTERS = "ABC"; // tokens of a prompt that can be asked about; listed tokens; pixels of a line

/** The causes of a token after position `token`: {found, mark(cause), ask, waiting, error}; `isAsked` begins without a click. */
export function useWhy(look, token, answer, against, isOn, isAsked) {
  const { info } = look, can = isOn && info.generates && !info.encoder.length && !look.recorded && answer !== null && against !== undefined && token < Math.min(look.ids.length, LONGEST);
  const key = `${look.ids.slice(0, token + 1)}|${answer}`, [asked, setAsked] = useState(null), wants = can && (isAsked || asked === key);
  const state = useAnswer(look, "/look/causes", wants ? changed(look, { model: look.model, prompt: look.ids.slice(0, token + 1), token: answer, against }) : null);
  const found = state.value, marks = new Map();
  found?.heads.forEach((one, n) => marks.set(one.point, LETTERS[n] ?? ""));
  found?.neurons.forEach((one, n) => marks.set(one.point, String(n + 1)));
  return { can, found, mark: (one) => marks.get(one.point), ask: () => setAsked(key), waiting: wants && state.waiting, error: wants && state.error };
}

/** The words and the tables below the picture. */
export function Why({ why, look, text, answer, against, nameOf, edit, choose }) {
  if (!why.can) return null;
  const name = (token) => spokenOf(nameOf(token) ?? why.found?.texts[token] ?? look.names[token] ?? `#${token}`), label = (t) => shown(text.labels[t] ?? "");
  const title = html`Why <b class="answer">${name(answer)}</b> and not <b>${name(against)}</b>?`;
  if (!why.found) return html`<section class="why" aria-label="why this token"><h3>${title} ${why.waiting ? html`<span role="status" class="note">Reading: the model runs without one part after the other …</span>` : html`<button type="button" onClick=${why.ask}>Find out</button>`}</h3>${why.error && html`<p class="note">${why.error.message}</p>`}</section>`;
  const { lead, probability, tokens, heads, neurons, tried } = why.found, best = heads[0], isBest = best && lead - best.lead > 0.05 * Math.abs(lead), largest = tokens[0];
  const all = look.info.blocks.reduce((sum, one) => sum + (one.heads ?? 0), 0);
  const list = (some, title, rows, note) => some.length > 0 && html`<div><h4>${title}</h4><table class="plain causes"><thead><tr><th scope="col"><span class="hidden">part</span></th><th scope="col"><span class="hidden">its effect</span></th><th scope="col" class="num">lead</th><th scope="col" class="num answer">${name(answer)}</th><th scope="col">says now</th></tr></thead>
    <tbody>${some.map((one) => html`<${Row} key=${one.point} one=${one} lead=${lead} scale=${scaleOf(why.found)} name=${name} mark=${why.mark(one)} edit=${edit} look=${look} choose=${choose}>${rows(one)}<//>`)}</tbody></table><p class="note">${note}</p></div>`;
  return html`<section class="why" aria-label="why this token"><h3>${title}</h3>
    <p>${isBest ? html`Head ${why.mark(best)} brings <b>${label(best.key)}</b> to <b>${label(best.token)}</b>. Without this one head of ${counted(all)}, the lead over ${name(against)} falls from ${lead.toFixed(2)} to ${best.lead.toFixed(2)}, and ${name(answer)} from ${percent(probability)} to ${percent(best.probability)}.` : html`No single head decides it. `}
      ${largest && html` Of the words, <b>${label(largest.token)}</b> matters most: without it the model says ${name(largest.says)}.`}</p>
    <div class="three">${list(tokens.slice(0, TOKENS), "Tokens, with an embedding of zeros", (one) => html`<b>${label(one.token)}</b>`, `Lead: the logit of ${name(answer)} minus that of ${name(against)}: ${lead.toFixed(2)} with all parts. Left of 0, ${name(against)} leads.`)}
      ${list(heads, "Heads, taken out at all tokens", (one) => html`block ${one.layer}, head ${one.unit} <span class="faint">${label(one.token)} reads ${label(one.key)}</span>`, `The largest effects of ${counted(tried.heads)} heads that were taken out, of ${counted(all)}.`)}
      ${list(neurons, "Neurons, taken out at one token", (one) => html`block ${one.layer}, no. ${one.unit} <span class="faint">at ${label(one.token)}, raises ${one.raises.slice(0, 2).map(name).join(" ")}</span>`, `The largest effects of ${counted(tried.neurons)} neurons.${edit ? " A click on a row takes the part out of the picture above." : ""}`)}</div></section>`;
}

function scaleOf({ lead, tokens, heads, neurons }) {
  const all = [0, lead, ...[...tokens.slice(0, TOKENS), ...heads, ...neurons].map((one) => one.lead)], [low, high] = [Math.min(...all), Math.max(...all)];
  return (value) => 4 + ((WIDE - 8) * (value - low)) / (high - low || 1);
}

function Row({ one, lead, scale, name, mark, edit, look, choose, children }) {
  const isOut = look.edits.some((edited) => edited.point === one.point), kind = one.layer === null ? "token" : one.key === null ? "neuron" : "head";
  const take = () => {
    choose({ ...(one.layer === null ? {} : { block: one.layer }), ...(kind === "head" ? { head: one.unit } : {}) });
    edit?.(one.point, isOut ? null : { edit: "ablate" });
  };
  return html`<tr class=${`${kind} ${isOut ? "chosen" : ""}`} data-point=${one.point} data-lead=${one.lead} data-without=${one.probability}><th scope="row"><button type="button" class="quiet" aria-pressed=${isOut} onClick=${take}>${mark && html`<span class=${`letter ${kind}`}>${mark}</span> `}${children}</button></th>
    <td><svg width=${WIDE} height="18" aria-hidden="true"><path class="zero" d=${`M${scale(0)} 1V17`} /><path class="all" d=${`M${scale(lead)} 1V17`} /><path class="fall" d=${`M${scale(lead)} 9H${scale(one.lead)}`} /><circle cx=${scale(one.lead)} cy="9" r="4" /></svg></td>
    <td class="num">${one.lead.toFixed(2)}</td><td class="num answer">${percent(one.probability)}</td><td>${name(one.says)} ${percent(one.says_probability)}</td></tr>`;
}

/** The causes in the picture: a head as a path from the token that it reads, a neuron as a number at its token. */
export function Marks({ why, cells, rows, y, choose, edges }) {
  if (!why?.found) return null;
  const place = new Map(rows.map((row, i) => [row.t, i]).filter(([t]) => t !== undefined)), middle = (layer) => cells[layer][0] + cells[layer][1] / 2;
  return html`<g class="cause-marks">${[...why.found.heads, ...why.found.neurons].map((one, n) => {
    const i = place.get(one.token), from = one.key === null ? undefined : place.get(one.key), isOpen = cells[one.layer][1] > 60;
    if (i === undefined) return null;
    const x = isOpen ? edges[one.key === null ? "neurons" : "pattern"] ?? middle(one.layer) : middle(one.layer), high = y(i) - (one.key === null ? 13 : 0);
    return html`<${Part} key=${one.point} name=${`cause ${one.key === null ? "neuron" : "head"}`} label=${`${one.key === null ? "neuron" : "head"} ${why.mark(one)}: block ${one.layer}, ${one.unit}`} stop=${n === 0} onClick=${() => choose(one.key === null ? { block: one.layer, token: one.token, point: `blocks.${one.layer}.feedforward.hidden`, dim: one.unit, key: -1 } : { block: one.layer, head: one.unit, token: one.token, point: `blocks.${one.layer}.attention.pattern`, key: one.key, dim: -1 })}>
      ${from !== undefined && from !== i && !isOpen && html`<path d=${link(x - 14, y(from), x, y(i))} />`}<circle class="hit" cx=${x} cy=${high} r="12" /><circle cx=${x} cy=${high} r="7" /><text x=${x} y=${high + 3.6} text-anchor="middle">${why.mark(one)}</text><//>`;
  })}</g>`;
}
