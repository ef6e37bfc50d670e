// Changes of values, and the text with and without them.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array, packed, post } from "/web/server/api.js";
import { Choose } from "/web/parts/show.js";
import { labelled, nameOf, percent, shown } from "/web/parts/text.js";

export function Changes(props) {
  return html`<div><${Steer} ...${props} />${props.edits.length
    ? html`<${Compare} ...${props} />`
    : html`<p class="empty">Nothing is changed. Ablate a head in Attention or a neuron in Feed-forward, or steer.</p>`}</div>`;
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
  return html`<details><summary>Steer with the difference of two prompts</summary><form class="steer" onSubmit=${make}>
    <label>towards <input value=${form.to} onInput=${(event) => set({ to: event.target.value })} /></label>
    <label>away from <input value=${form.from} onInput=${(event) => set({ from: event.target.value })} /></label>
    <${Choose} label="block" value=${form.block} most=${look.info.blocks.length - 1} onChange=${(block) => set({ block })} />
    <label>times <input type="number" step="0.25" min="-20" max="20" value=${form.factor} onInput=${(event) => event.target.value !== "" && set({ factor: +event.target.value })} /></label>
    <button type="submit" disabled=${state.waiting || !form.to || !form.from}>Add this vector</button></form>
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}</details>`;
}

function Compare({ edits, onEdit, ask, look }) {
  const [state, setState] = useState({});
  const compare = async () => {
    setState({ waiting: true });
    try {
      const [plain, changed] = await Promise.all([[], edits].map((some) => post("/look/generate", { ...ask, edits: some, stream: false })));
      setState({ plain: plain.events, changed: changed.events, of: JSON.stringify([edits, ask]) });
    } catch (error) {
      setState({ error });
    }
  };
  const stale = state.of && state.of !== JSON.stringify([edits, ask]);
  return html`<div><ul class="edits">${edits.map((one) => html`<li key=${one.point}><span class="name">${one.edit}${one.factor === undefined ? "" : ` × ${one.factor}`}</span> <code>${one.point}</code>
      <button type="button" class="quiet" aria-label=${`take back ${one.point}`} onClick=${() => onEdit(one.point, null)}>take back</button></li>`)}</ul>
    <div class="bar"><button type="button" class="main" disabled=${state.waiting || !look.text} onClick=${compare}>Compare with and without</button></div>
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    ${stale && html`<p class="note">The texts below are of other changes: compare again.</p>`}
    ${state.plain && html`<div class="two"><${Side} title="without" events=${state.plain} /><${Side} title="with the changes" events=${state.changed} other=${state.plain} /></div>`}</div>`;
}

function Side({ title, events, other }) {
  const made = events.filter((one) => one.type === "token"), before = other?.filter((one) => one.type === "token");
  const { pieces, characters } = events[0], labels = labelled([...pieces, ...made.map((one) => one.piece)], [...characters, ...made.flatMap((one) => one.character ?? [])]).slice(pieces.length);
  return html`<div><h4>${title}</h4><p class="text">${made.map((one, at) => html`<span key=${at} class=${before && before[at]?.token !== one.token ? "differs" : ""}>${shown(labels[at])}</span>`)}</p>
    <table class="bars"><caption>the first token</caption><tbody>${(made[0]?.alternatives ?? []).slice(0, 6).map((one) => html`<tr key=${one.token}><th scope="row">${shown(nameOf(one))}</th>
      <td><span class="filled" style=${{ width: `${(one.probability * 100).toFixed(1)}%` }}></span><span class="num">${percent(one.probability)}</span></td></tr>`)}</tbody></table></div>`;
}
