// Changes of values, and the text with and without them.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Effect, grouped } from "/web/panels/effect.js";
import { array, packed, post } from "/web/server/api.js";
import { useTrace } from "/web/server/data.js";
import { Choose } from "/web/parts/show.js";
import { labelled, nameOf, number, percent, shown, spaced } from "/web/parts/text.js";

const CANDIDATES = 10;
const RANGES = { scale: [-2, 4, 0.1], ablate: [-2, 4, 0.1], add: [-10, 10, 0.25] }; // least and largest factor, and the step

export function Changes(props) {
  const { edits, onEdit, look, at } = props;
  return html`<div>${edits.length > 0
    ? html`<ul class="edits">${grouped(edits).map((some) => html`<${Change} key=${some[0].point} some=${some} onEdit=${onEdit} look=${look} at=${at} />`)}</ul>
      <${Effect} look=${look} at=${at} />
      ${grouped(edits).length > 1 && html`<button type="button" onClick=${() => edits.forEach((one) => onEdit(one.point, null))}>Take all changes back</button>`}`
    : html`<p class="empty">Nothing is changed. Click a weight, a neuron or a number in the picture and press ⊘ beside its formula${look.info.generates ? ", or add a steering vector here" : ""}.</p>`}
    ${look.info.generates && html`<${Steer} ...${props} />${edits.length > 0 && html`<${Compare} ...${props} />`}`}</div>`;
}

/** What a change is about, in words. */
function titleOf({ point }) {
  if (point.startsWith("position")) return "positions";
  const [, layer, rest] = point.match(/^blocks\.(\d+)\.(.*)$/) ?? [], [, name, which] = rest?.match(/^([^[]+)(?:\[\w+=([\d,]+))?/) ?? [];
  const titles = { "attention.heads": "head", "feedforward.hidden": "neuron", "feedforward.router": "expert", "attention.pattern": "the pattern of head", "cross.heads": "head (to the source)" };
  if (titles[name] && which) return `${titles[name]} ${which} of block ${layer}`;
  return layer === undefined ? point : partTitle(name, layer);
}

const OUTPUTS = { attention: "attention", cross: "attention to the source", feedforward: "the feed-forward", recurrent: "the recurrent layer" };

/** What a point of a block is, in words: the residual stream, or what a part adds to it. */
export function partTitle(name, layer) {
  const [part, what] = name.split("."), own = OUTPUTS[part];
  if (name === "residual") return `the residual stream after block ${layer}`;
  if (own && what === "residual") return `the residual stream after ${own} of block ${layer}`;
  if (own && what === "output") return `the output of ${own} in block ${layer}`;
  return own && what === "post_norm" ? `the output of ${own} in block ${layer} after its norm` : `${name} of block ${layer}`;
}

function actionOf(one) {
  if (one.point.startsWith("position")) return "taken out";
  if (one.point.includes(".router[")) return "may not be chosen";
  const { to, from } = one.about ?? {}, prompts = to === undefined ? "" : ` (towards “${to}”, away from “${from}”)`;
  return { ablate: "taken out", scale: "multiplied by", add: `steering vector${prompts}, multiplied by`, replace: "replaced: looks at one token" }[one.edit];
}

/** All changes as one sentence: "head 8 of block 13: taken out; positions: taken out". */
export function sentenceOf(edits) {
  return grouped(edits).map(([one]) => `${titleOf(one)}: ${actionOf(one)}${one.factor === undefined || one.point.startsWith("position") ? ""
    : ` ${one.factor}`}`).join("; ");
}

function Change({ some, onEdit, look, at }) {
  const [one] = some, title = titleOf(one), range = one.values === undefined || one.edit === "add" ? RANGES[one.edit] : null,
    factor = one.factor ?? (one.edit === "add" ? 1 : 0), isPosition = title.startsWith("positions");
  const set = (value) => onEdit(one.point, one.edit === "add" ? { ...one, factor: value } : { edit: "scale", factor: value });
  return html`<li><span class="name"><b>${title}</b>: ${actionOf(one)}</span>
    ${range && !isPosition && html`<span class="factor"><input type="range" aria-label=${`factor of ${title}`} min=${range[0]} max=${range[1]} step=${range[2]} value=${factor} onChange=${(event) => set(+event.target.value)} />
      <input type="number" aria-label=${`factor of ${title}, as a number`} min=${range[0]} max=${range[1]} step=${range[2]} value=${factor}
        onChange=${(event) => event.target.value !== "" && set(Math.max(range[0], Math.min(range[1], +event.target.value)))} /></span>`}
    <button type="button" class="quiet" aria-label=${`take back: ${title}`}
      onClick=${() => some.forEach(({ point }) => onEdit(point, null))}>take back</button>
    ${one.about && html`<${Length} one=${one} factor=${factor} look=${look} at=${at} />`}</li>`;
}

/** How long a steering vector is beside the residual stream that it is added to. */
function Length({ one, factor, look, at }) {
  const token = Math.max(0, Math.min(at.token, look.ids.length - 1)), { arrays } = useTrace({ ...look, edits: [] }, { norms: [`${one.point}[tokens=${token}]`] });
  const [there] = arrays?.[one.point]?.values ?? [], own = one.about.size * Math.abs(factor);
  return html`<span class="note">The vector is ${number(own)} long${there > 0 && html`; the residual stream there is ${number(there)} long at
    ${" "}<span class="piece">${shown(look.pieces[token] ?? "")}</span>: ${(100 * own / there).toFixed(0)} %`}.</span>`;
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
      const vector = to.map((x, i) => x - from[i]), size = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
      onEdit(point, { edit: "add", ...packed(vector, [to.length]), factor: form.factor, about: { to: form.to, from: form.from, size } });
      setState({});
    } catch (error) {
      setState({ error });
    }
  };
  if (!(point in look.info.points)) return null;
  return html`<details><summary>Steer with two prompts</summary>
    <p class="note">The last vector of the first prompt minus that of the second is a direction. It is added to every token after a block, and the text leans towards the first prompt.</p><form class="steer" onSubmit=${make}>
    <label class="prompt">towards <input value=${form.to} dir="auto" onInput=${(event) => set({ to: event.target.value })} /></label>
    <label class="prompt">away from <input value=${form.from} dir="auto" onInput=${(event) => set({ from: event.target.value })} /></label>
    <${Choose} label="after block" value=${form.block} most=${look.info.blocks.length - 1} onChange=${(block) => set({ block })} />
    <label>factor <input type="number" step="0.25" min="-20" max="20" value=${form.factor} onInput=${(event) => event.target.value !== "" && set({ factor: +event.target.value })} /></label>
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
    parts = Array.from({ length: count }, (_, i) => i).find((i) => plain.made[i]?.token !== changed.made[i]?.token), [wanted, setWanted] = useState("differs");
  // After the first token that differs the distributions are about two texts: they cannot be compared.
  const at = wanted === "first" ? 0 : parts ?? 0, isChosen = (one) => (parts === 0 || parts === undefined ? one === "first" : one === wanted);
  const side = (title, { made, labels }) => html`<div><h4>${title}</h4><p class="text" dir="auto">
    ${made.map((one, i) => html`<span key=${i} class=${parts !== undefined && i >= parts ? "differs" : ""}>${spaced(labels[i]).replaceAll("\n", "⏎")}</span>`)}
    </p></div>`;
  return html`<div><div class="two">${side("without the changes", plain)}${side("with the changes", changed)}</div>
    <p class="note" role="status">${parts === undefined ? "Both texts are the same." : parts ? `The first ${parts === 1 ? "token is" : `${parts} tokens are`} the same.` : "The texts differ from the first token on."}</p>
    <div class="bar" role="group" aria-label="the token whose distributions are compared"><span>Distributions of</span>
      <button type="button" aria-pressed=${isChosen("first")} onClick=${() => setWanted("first")}>the first token</button>
      <button type="button" aria-pressed=${isChosen("differs")} disabled=${!parts} onClick=${() => setWanted("differs")}>the first that differs${parts ? `: token ${parts + 1}` : ""}</button></div>
    <${Distributions} plain=${plain.made[at]?.alternatives ?? []} changed=${changed.made[at]?.alternatives ?? []} /></div>`;
}

/** The likeliest tokens of two distributions over the same place. */
function Distributions({ plain, changed }) {
  const [before, now] = [plain, changed].map((all) => new Map(all.map((one) => [one.token, one.probability]))),
    names = new Map([...plain, ...changed].map((one) => [one.token, nameOf(one)]));
  const tokens = [...names.keys()].sort((a, b) => Math.max(before.get(b) ?? 0, now.get(b) ?? 0) - Math.max(before.get(a) ?? 0, now.get(a) ?? 0)).slice(0,
    CANDIDATES);
  const cell = (p, name) => html`<td class="num"><span class=${`filled ${name}`} style=${{ width: `${((p ?? 0) * 100).toFixed(1)}%` }}></span><span>
    ${p === undefined ? "not among the likeliest" : percent(p)}</span></td>`;
  return html`<table class="bars"><caption>probabilities in the model's distribution: softmax, before the temperature</caption><thead><tr><th scope="col">token</th><th scope="col" class="num">without</th><th scope="col" class="num">with the changes</th></tr></thead><tbody>
    ${tokens.map((token) => html`<tr key=${token}><th scope="row"><span class="piece">${shown(names.get(token))}</span></th>
    ${cell(before.get(token), "grey")}${cell(now.get(token), "green")}</tr>`)}</tbody></table>`;
}
