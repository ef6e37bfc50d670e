// Changes of values, and the text with and without them.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { post } from "/web/api.js";
import { percent, shown } from "/web/text.js";

export function Changes({ edits, onEdit, ask, look }) {
  const [state, setState] = useState({});
  if (!edits.length) return html`<p class="empty">Nothing is changed. Ablate a head in Attention, or a neuron in Feed-forward.</p>`;
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
  return html`<div><h4>${title}</h4><p class="text">${made.map((one, at) => html`<span key=${at} class=${before && before[at]?.token !== one.token ? "differs" : ""}>${shown(one.piece)}</span>`)}</p>
    <table class="bars"><caption>the first token</caption><tbody>${(made[0]?.alternatives ?? []).slice(0, 6).map((one) => html`<tr key=${one.token}><th scope="row">${shown(one.piece)}</th>
      <td><span class="filled" style=${{ width: `${(one.probability * 100).toFixed(1)}%` }}></span><span class="num">${percent(one.probability)}</span></td></tr>`)}</tbody></table></div>`;
}
