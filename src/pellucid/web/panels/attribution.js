// attribution: what each part of the model adds to the score of a token that came.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, numbered, readFields, useAnswer } from "/web/server/data.js";
import { Signed } from "/web/panels/feedforward.js";
import { AttributionGraph } from "/web/panels/graph.js";
import { Picture, colour } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { counted, number, shown } from "/web/parts/text.js";

const MOST = 16, MOST_TOKENS = 2000, ROW = 15, LABEL = 34;
const KINDS = [["attention", "attention", "attention"], ["feedforward", "feed-forward", "feedforward"], ["recurrent", "recurrent layers", "recurrent"], ["cross", "attention to the source", "cross"]];
const SIGNS = "A positive part makes the token likelier, a negative part makes it less likely.";
const PART = { head: "attention", expert: "feedforward" };
const OPENS = { head: ["attention"], cross: ["source"], feedforward: ["feedforward", "experts"] }; // the panels of a part

export const attribution = {
  id: "attribution",
  title: "Attribution",
  about: "How much each part of the model adds to the score of the next token. The last vector is a sum, so its score is a sum too.",
  has: (info) => info.generates,
  asks: "/look/attribution",
  View,
};

function View({ look, width, at, choose, open }) {
  const t = Math.min(at.token, look.ids.length - 2, MOST_TOKENS - 1), known = t >= 0;
  const state = useAnswer(look, "/look/attribution", known ? changed(look, { model: look.model, ...readFields(look, look.ids.slice(0, t + 1)), token: look.ids[t + 1] }) : null), found = state.value;
  if (!known) return html`<p class="empty">Run a text first: attribution explains the token that follows the chosen one.</p>`;
  return html`<div><${State} state=${state}>${found
    && html`<div><p role="status">After <span class="piece">${shown(look.pieces[t] ?? "")}</span> the logit of <span class="piece">${shown(found.piece)}
    </span> is ${number(found.logit)}. ${SIGNS}</p>
      <${Parts} all=${found.contributions} logit=${found.logit} onOpen=${(one) => { choose({ block: one.layer, ...(one.head !== null && { head: one.head }) }); open(...OPENS[one.kind]); }} />
      <h4>Block by block</h4><${Layers} all=${found.contributions} width=${width} /></div>`}<//>
    <${AttributionGraph} key=${keyOf(look, t)} look=${look} ids=${look.ids.slice(0, t + 1)} /></div>`;
}

/** What a graph is about: another text has another. */
function keyOf(look, t) {
  return `${look.model} ${numbered(look.ids)} ${t} ${JSON.stringify(look.edits)}`;
}

/** The largest parts, and all others together: the lines sum to the logit. */
function Parts({ all, logit, onOpen }) {
  const some = [...all].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, MOST), rest = logit - some.reduce((sum, one) => sum + one.value, 0), most = Math.max(...some.map((one) => Math.abs(one.value)), Math.abs(rest), 1e-9);
  return html`<table class="bars"><caption>the largest parts; choose a part to open it</caption><tbody>
    ${some.map((one) => html`<tr key=${one.name}><th scope="row">${one.kind in OPENS
    ? html`<button type="button" class="quiet" onClick=${() => onOpen(one)}>${nameOf(one)}</button>` : nameOf(one)}</th>
    <td><${Signed} value=${one.value} most=${most} /></td></tr>`)}
    ${all.length > some.length && html`<tr><th scope="row">all ${counted(all.length - some.length)} other parts together</th><td><${Signed} value=${rest} most=${most} /></td></tr>`}
    <tr class="total"><th scope="row">sum: the logit</th><td><span class="num">${logit > 0 ? "+" : ""}${number(logit)}</span></td></tr></tbody></table>`;
}

/** The name of a part as people say it. */
function nameOf({ kind, layer, head, name }) {
  if (kind === "head") return `block ${layer}, head ${head}`;
  if (kind === "cross" && head !== null) return `block ${layer}, head ${head} to the source`;
  return kind === "feedforward" ? `block ${layer}, feed-forward` : name;
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
  return html`<div><${Picture} width=${width} height=${layers * ROW} paint=${paint} at=${at} of=${[all, width]}
    label=${`what ${layers} blocks add to the logit: ${kinds.map(([, text]) => text).join(" and ")}`} />
    <ul class="legend">${kinds.map(([kind, text, name]) => html`<li key=${kind}><span class=${`mark ${name}`}></span>${text}</li>`)}</ul></div>`;
}
