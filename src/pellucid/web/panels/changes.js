// Changes of values, and the text with and without them.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array, packed, post } from "/web/server/api.js";
import { Choose } from "/web/parts/show.js";
import { labelled, nameOf, percent, shown, spaced } from "/web/parts/text.js";

const CANDIDATES = 10;
const RANGES = { scale: [-2, 4, 0.1], ablate: [-2, 4, 0.1], add: [-10, 10, 0.25] }; // least and largest factor, and the step

export function Changes(props) {
  const { edits, onEdit } = props;
  return html`<div>${edits.length > 0
    ? html`<ul class="edits">${grouped(edits).map((some) => html`<${Change} key=${some[0].point} some=${some} onEdit=${onEdit} />`)}</ul>
      ${edits.length > 1 && html`<button type="button" onClick=${() => edits.forEach((one) => onEdit(one.point, null))}>Take all changes back</button>`}`
    : html`<p class="empty">Nothing is changed. Click a weight, a neuron or a number in the picture and press ⊘ beside its formula, or add a steering vector here.</p>`}
    <${Steer} ...${props} />${edits.length > 0 && html`<${Compare} ...${props} />`}</div>`;
}

/** Changes that belong together, as one: those of the positions. */
export function grouped(edits) {
  const isPosition = (one) => one.point.startsWith("position"), some = edits.filter(isPosition);
  return [...(some.length ? [some] : []), ...edits.filter((one) => !isPosition(one)).map((one) => [one])];
}

/** What a change is about, in words. */
function titleOf({ point }) {
  if (point.startsWith("position")) return "positions";
  const [, layer, rest] = point.match(/^blocks\.(\d+)\.(.*)$/) ?? [], [, name, which] = rest?.match(/^([^[]+)(?:\[\w+=([\d,]+))?/) ?? [];
  const titles = { "attention.heads": "head", "feedforward.hidden": "neuron", "feedforward.router": "expert", "attention.pattern": "the pattern of head" };
  if (titles[name] && which) return `${titles[name]} ${which} of block ${layer}`;
  return { residual: `the residual stream after block ${layer}` }[name] ?? point;
}

function actionOf(one) {
  if (one.point.startsWith("position")) return "taken out";
  if (one.point.includes(".router[")) return "may not be chosen";
  return { ablate: "taken out", scale: "times", add: "steering vector, times", replace: "replaced: looks at one token" }[one.edit];
}

/** All changes as one sentence: "head 8 of block 13: taken out; positions: taken out". */
export function sentenceOf(edits) {
  return grouped(edits).map(([one]) => `${titleOf(one)}: ${actionOf(one)}${one.factor === undefined || one.point.startsWith("position") ? ""
    : ` ${one.factor}`}`).join("; ");
}

function Change({ some, onEdit }) {
  const [one] = some, title = titleOf(one), range = one.values === undefined || one.edit === "add" ? RANGES[one.edit] : null,
    factor = one.factor ?? (one.edit === "add" ? 1 : 0);
  const set = (value) => onEdit(one.point, one.edit === "add" ? { ...one, factor: value } : { edit: "scale", factor: value });
  return html`<li><span class="name"><b>${title}</b>: ${actionOf(one)}</span>
    ${range && !title.startsWith("positions") && html`<label class="slider"><span class="hidden">factor of ${title}</span>
      <input type="range" min=${range[0]} max=${range[1]} step=${range[2]} value=${factor} onChange=${(event) => set(+event.target.value)} />
      <output>× ${factor}</output></label>`}
    <button type="button" class="quiet" aria-label=${`take back: ${title}`}
      onClick=${() => some.forEach(({ point }) => onEdit(point, null))}>take back</button></li>`;
}

/** Add the difference of two prompts' last vectors to the residual stream, at all tokens. */
function Steer({ look, onEdit }) {
  const [form, setForm] = useState({ to: "I love this.", from: "I hate this.", block: Math.floor(look.info.blocks.length / 2), factor: 1 }), [state, setState] = useState({});
  const set = (part) => setForm({ ...form, ...part }), point = `blocks.${form.block}.residual`;
  const make = async (event) => {
    event.preventDefault();
    setState({ waiting: true });
    try {
      const [to, from] = await Promise.all([form.to, form.from].map(async (prompt) => {
        const found = array((await post("/look/trace", { model: look.model, prompt, points: [point], max_tokens: 1 })).arrays[point]);
        return found.row(found.shape[0] - 1);
      }));
      onEdit(point, { edit: "add", ...packed(to.map((x, i) => x - from[i]), [to.length]), factor: form.factor });
      setState({});
    } catch (error) {
      setState({ error });
    }
  };
  if (!(point in look.info.points)) return null;
  return html`<details><summary>Steer with two prompts</summary>
    <p class="note">The last vector of the first prompt minus that of the second is a direction. It is added to every token after a block, and the text leans towards the first prompt.</p><form class="steer" onSubmit=${make}>
    <label>towards <input value=${form.to} dir="auto" onInput=${(event) => set({ to: event.target.value })} /></label>
    <label>away from <input value=${form.from} dir="auto" onInput=${(event) => set({ from: event.target.value })} /></label>
    <${Choose} label="after block" value=${form.block} most=${look.info.blocks.length - 1} onChange=${(block) => set({ block })} />
    <label>times <input type="number" step="0.25" min="-20" max="20" value=${form.factor} onInput=${(event) => event.target.value !== "" && set({ factor: +event.target.value })} /></label>
    <button type="submit" disabled=${state.waiting || !form.to || !form.from}>Add the vector</button></form>
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}</details>`;
}

function Compare({ edits, ask, look }) {
  const [state, setState] = useState({}), of = JSON.stringify([edits, ask]);
  const compare = async () => {
    setState({ waiting: true });
    try {
      const [plain, changed] = await Promise.all([[], edits].map((some) => post("/look/generate", { ...ask, edits: some, stream: false })));
      setState({ plain: textOf(plain.events), changed: textOf(changed.events), of });
    } catch (error) {
      setState({ error });
    }
  };
  return html`<div><div class="bar"><button type="button" class="main" disabled=${state.waiting || !look.text} onClick=${compare}>Compare</button>
    <span class="note" role="status">${state.waiting ? "The model writes both texts …"
    : "The model writes the text twice: without the changes, and with them."}</span></div>
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    ${state.of && state.of !== of && html`<p class="note" role="status">The changes or the text are others now: compare again.</p>`}
    ${state.plain && html`<${Both} plain=${state.plain} changed=${state.changed} />`}</div>`;
}

/** The tokens of a text that was written, and their labels. */
function textOf(events) {
  const made = events.filter((one) => one.type === "token"), { pieces, characters } = events[0];
  return { made, labels: labelled([...pieces, ...made.map((one) => one.piece)],
    [...characters, ...made.flatMap((one) => one.character ?? [])]).slice(pieces.length) };
}

/** Both texts, and both distributions where the texts part. */
function Both({ plain, changed }) {
  const count = Math.max(plain.made.length, changed.made.length),
    parts = Array.from({ length: count }, (_, i) => i).find((i) => plain.made[i]?.token !== changed.made[i]?.token), at = parts ?? 0;
  const side = (title, { made, labels }) => html`<div><h4>${title}</h4><p class="text" dir="auto">
    ${made.map((one, i) => html`<span key=${i} class=${parts !== undefined && i >= parts ? "differs" : ""}>${spaced(labels[i]).replaceAll("\n", "⏎")}</span>`)}
    </p></div>`;
  return html`<div><div class="two">${side("without the changes", plain)}${side("with the changes", changed)}</div>
    <p class="note" role="status">${parts === undefined ? "Both texts are the same. The first token:" : parts ? `The first ${parts} tokens are the same. Then:`
      : "The first token:"}</p><${Distributions} plain=${plain.made[at]?.alternatives ?? []} changed=${changed.made[at]?.alternatives ?? []} /></div>`;
}

/** The likeliest tokens of two distributions over the same place. */
function Distributions({ plain, changed }) {
  const [before, now] = [plain, changed].map((all) => new Map(all.map((one) => [one.token, one.probability]))),
    names = new Map([...plain, ...changed].map((one) => [one.token, nameOf(one)]));
  const tokens = [...names.keys()].sort((a, b) => Math.max(before.get(b) ?? 0, now.get(b) ?? 0) - Math.max(before.get(a) ?? 0, now.get(a) ?? 0)).slice(0,
    CANDIDATES);
  const cell = (p, name) => html`<td><span class=${`filled ${name}`} style=${{ width: `${((p ?? 0) * 100).toFixed(1)}%` }}></span><span class="num">
    ${p === undefined ? "less" : percent(p)}</span></td>`;
  return html`<table class="bars"><thead><tr><th scope="col">token</th><th scope="col">without</th><th scope="col">with the changes</th></tr></thead><tbody>
    ${tokens.map((token) => html`<tr key=${token}><th scope="row"><span class="piece">${shown(names.get(token))}</span></th>
    ${cell(before.get(token), "grey")}${cell(now.get(token), "green")}</tr>`)}</tbody></table>`;
}
