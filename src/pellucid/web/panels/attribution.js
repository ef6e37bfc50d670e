// attribution: what each part of the model adds to the score of a token that came.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, useAnswer } from "/web/server/data.js";
import { Picture, colour } from "/web/parts/draw.js";
import { State, Tokens } from "/web/parts/show.js";
import { number, shown } from "/web/parts/text.js";

const MOST = 16, MOST_TOKENS = 2000, ROW = 15, LABEL = 34;
const KINDS = [["attention", "attention", "accent"], ["feedforward", "feed-forward", "warm"], ["recurrent", "recurrent layers", "cool"]];
const PART = { head: "attention", expert: "feedforward" };

export const attribution = {
  id: "attribution",
  title: "What made it likely",
  about: "The last vector is the sum of what all parts have added, so the score of a token is too: each part's share of it.",
  has: (info) => info.generates,
  asks: "/look/attribution",
  View,
};

function View({ look, width, at, choose, open }) {
  const t = Math.min(at.token, look.ids.length - 2, MOST_TOKENS - 1), known = t >= 0;
  const state = useAnswer(look, "/look/attribution", known ? changed(look, { model: look.model, prompt: look.ids.slice(0, t + 1), token: look.ids[t + 1] }) : null), found = state.value;
  if (!known) return html`<p class="empty">There is no token after another one yet.</p>`;
  return html`<div><${Tokens} pieces=${look.pieces.slice(1)} first=${1} chosen=${t + 1} onChoose=${(token) => choose({ token: token - 1 })} label="token whose score is explained" />
    <${State} state=${state}>${found && html`<div><p role="status">The logit of <span class="piece">${shown(found.piece)}</span> is ${number(found.logit)}.</p>
      <${Parts} all=${found.contributions} onOpen=${(one) => { choose({ block: one.layer, ...(one.head !== null && { head: one.head }) }); open(...(one.kind === "head" ? ["attention"] : ["feedforward", "experts"])); }} />
      <h4>Layer by layer</h4><${Layers} all=${found.contributions} width=${width} /></div>`}<//></div>`;
}

function Parts({ all, onOpen }) {
  const some = [...all].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, MOST), most = Math.max(...some.map((one) => Math.abs(one.value)), 1e-9);
  return html`<table class="bars"><caption>the largest parts</caption><tbody>${some.map((one) => html`<tr key=${one.name}><th scope="row">${one.kind === "head" || one.kind === "feedforward"
    ? html`<button type="button" class="quiet" onClick=${() => onOpen(one)}>${one.name}</button>` : one.name}</th>
    <td><span class=${`filled ${one.value < 0 ? "negative" : ""}`} style=${{ width: `${(100 * Math.abs(one.value)) / most}%` }}></span><span class="num">${one.value > 0 ? "+" : ""}${number(one.value)}</span></td></tr>`)}</tbody></table>`;
}

/** What each layer's attention and feed-forward add, to the right of a line or to its left. */
function Layers({ all, width }) {
  const layers = Math.max(...all.map((one) => (one.layer ?? -1) + 1), 1), sums = Object.fromEntries(KINDS.map(([kind]) => [kind, new Float64Array(layers)]));
  for (const one of all) if (one.layer !== null && sums[PART[one.kind] ?? one.kind]) sums[PART[one.kind] ?? one.kind][one.layer] += one.value;
  const kinds = KINDS.filter(([kind]) => sums[kind].some(Boolean)), most = Math.max(...kinds.flatMap(([kind]) => Array.from(sums[kind], Math.abs)), 1e-9);
  const middle = LABEL + (width - LABEL) / 2, unit = (width - LABEL) / 2 / most, thick = (ROW - 3) / Math.max(kinds.length, 1);
  const paint = (context) => {
    for (let layer = 0; layer < layers; layer++) {
      context.fillStyle = colour("ink");
      context.fillText(String(layer), 4, layer * ROW + 11);
      kinds.forEach(([kind, , name], i) => {
        const size = sums[kind][layer] * unit;
        context.fillStyle = colour(name);
        context.fillRect(Math.min(middle, middle + size), layer * ROW + 1 + i * thick, Math.abs(size), thick - 1);
      });
    }
    context.fillStyle = colour("line");
    context.fillRect(middle, 0, 1, layers * ROW);
  };
  const at = (x, y) => {
    const layer = Math.floor(y / ROW);
    return layer < layers ? `block ${layer}: ${kinds.map(([kind, text]) => `${text} ${number(sums[kind][layer])}`).join(", ")}` : "";
  };
  return html`<div><${Picture} width=${width} height=${layers * ROW} paint=${paint} at=${at} of=${[all, width]} label=${`what ${layers} layers add to the logit, ${kinds.map(([, text]) => text).join(" and ")} apart`} />
    <ul class="legend">${kinds.map(([kind, text, name]) => html`<li key=${kind}><span class=${`mark ${name}`}></span>${text}</li>`)}</ul></div>`;
}
