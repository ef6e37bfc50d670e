// One head at one token: its query beside the keys of all tokens, scores, weights, and the values that are gathered.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { operationOf } from "/web/picture/graph.js";
import { ROW, UNIT, isHeadOut, rowsOf } from "/web/picture/layout.js";
import { strip, strongest } from "/web/picture/marks.js";
import { Part, fit } from "/web/picture/svg.js";
import { State } from "/web/parts/show.js";
import { number, percent, shown } from "/web/parts/text.js";

/**
 * The points that a head's weights come from: {q, k, v}, complete names; undefined where the plan has none. The keys and
 * values of cross attention are of the encoder's plan.
 */
export function pointsOfHead(info, layer, part = "attention") {
  const prefix = `blocks.${layer}.${part}`, [q, k] = operationOf(info, `${prefix}.scores`)?.inputs ?? [], v = operationOf(info, `${prefix}.heads`)?.inputs.find((one) => !one.endsWith(".pattern"));
  return part === "cross" ? { q, k: [`${prefix}.k_norm`, `${prefix}.k`].find((name) => name in info.points), v: `${prefix}.v` } : { q, k, v };
}

/** The sizes of a block's attention to the text, or to a source ("cross"). */
export function sizesOf(info, layer, part = "attention") {
  return part === "cross" ? info.blocks[layer].cross ?? {} : info.blocks[layer];
}

/** The number of the keys' head that a head reads: several heads may share it. */
export function groupOf(info, layer, head, part = "attention") {
  const { heads, kv_heads: groups } = sizesOf(info, layer, part);
  return groups ? Math.floor(head / (heads / groups)) : head;
}

export function Head({ look, at, choose, labels, width, room }) {
  const { info } = look, { block, head, token } = at, prefix = `blocks.${block}.attention`, { q, k, v } = pointsOfHead(info, block), group = groupOf(info, block, head), has = (name) => name && name in info.points;
  const mine = (name, which, tokens) => `${name}[${(info.points[name].shape ?? "").split(", ").length > 3 ? `heads=${which}; ` : ""}tokens=${tokens}]`;
  const points = [`${prefix}.scores[heads=${head}; tokens=${token}]`, `${prefix}.pattern[heads=${head}; tokens=${token}]`];
  if (has(q)) points.push(mine(q, head, token));
  for (const name of [k, v]) if (has(name)) points.push(mine(name, group, `0:${look.ids.length}`));
  const state = useTrace(look, has(`${prefix}.pattern`) && look.ids.length ? { points } : {}), { arrays } = state;
  if (!has(`${prefix}.pattern`)) return html`<p class="empty">Block ${block} has no attention with heads.</p>`;
  return html`<div><p class="note">Head ${head} of block ${block} at ${shown(labels[token] ?? "")}: its query is compared with each key; the softmax of the scores says how much of each value it takes.${isHeadOut(look.edits, block, "attention", head) && " A change takes this head out: the sum of the values is not added."}</p>
    <${State} state=${state}>${arrays && html`<${Rows} arrays=${arrays} names=${{ q, k, v, scores: `${prefix}.scores`, pattern: `${prefix}.pattern` }} at=${at} choose=${choose} labels=${labels} width=${width} room=${room} count=${look.ids.length} />`}<//></div>`;
}

function Rows({ arrays, names, at, choose, labels, width, room, count }) {
  const row = ROW, size = UNIT, head = 64, last = (one) => one && one.values.subarray(one.values.length - one.shape.at(-1)), weights = last(arrays[names.pattern]), scores = last(arrays[names.scores]), sees = (t) => Number.isFinite(scores[t]) && scores[t] > -1e30;
  const ends = Array.from(weights.subarray(0, count), (_, t) => t + 1).findLast((end) => sees(end - 1)) ?? 0, rows = rowsOf(ends, room, at.key >= 0 ? at.key : at.token), y = (i) => head + i * row + row / 2, query = names.q && arrays[names.q]?.values;
  const column = (share) => width * share, [x0, x1, x2, x3, x4] = [0, ...(width < 600 ? [0.2, 0.42, 0.57, 0.76] : [0.13, 0.43, 0.55, 0.7]).map(column)], vectorOf = (name, t) => arrays[name]?.shape[0] > t && arrays[name].row(t);
  const most = (name) => strongest(rows.map((one) => one.t !== undefined && name && vectorOf(name, one.t))), shades = { k: most(names.k), v: most(names.v) };
  const vector = (values, box, shade) => html`<g class="strip">${strip(values, box, shade).map(([name, d]) => html`<path key=${name} class=${name} d=${d} />`)}</g>`;
  return html`<svg class="picture-svg head-view" width=${width} height=${head + rows.length * row + 10} viewBox=${`0 0 ${width} ${head + rows.length * row + 10}`} font-size=${size} role="group" aria-label=${`head ${at.head} of block ${at.block} at token ${at.token}`}>
    ${[[x1, "key"], [x2, "score"], [x3, "weight"], [x4, "value"]].map(([x, title]) => html`<text key=${title} class="head" x=${x} y=${head - 8}>${title}</text>`)}
    <text class="head" x=${x0 + 4} y="22">query</text>${query && vector(query, [x1, 10, x2 - x1 - 20, 16], strongest([query]))}
    ${rows.map((one, i) => {
      if (one.t === undefined) return html`<text key=${`f${one.from}`} class="small faint" x="4" y=${y(i) + 4}>⋮ ${one.to - one.from} more</text>`;
      const key = names.k && vectorOf(names.k, one.t), value = names.v && vectorOf(names.v, one.t), weight = weights[one.t], isSeen = sees(one.t);
      return html`<g key=${one.t} class=${`head-row ${isSeen ? "" : "dim"}`}>${one.t === at.key && html`<rect class="chosen-row" x="0" y=${y(i) - row / 2} width=${width} height=${row} rx="4" />`}
        <text class="word" x="4" y=${y(i) + 4}>${fit(shown(labels[one.t] ?? ""), x1 - 12, size)}</text>${key && vector(key, [x1, y(i) - 7, x2 - x1 - 20, 14], shades.k)}
        ${isSeen && html`<${Part} name="number" label=${`score of ${shown(labels[one.t] ?? "")}: ${number(scores[one.t])}`} onClick=${() => choose({ point: names.scores, key: one.t, dim: -1 })}><rect class="hit" x=${x2 - 4} y=${y(i) - 12} width=${x3 - x2 - 6} height="24" /><text class="mono" x=${x2} y=${y(i) + 4}>${number(scores[one.t])}</text><//>
        <${Part} name="number" label=${`weight of ${shown(labels[one.t] ?? "")}: ${percent(weight)}`} onClick=${() => choose({ point: names.pattern, key: one.t, dim: -1 })}><rect class="hit" x=${x3 - 4} y=${y(i) - 12} width=${x4 - x3 - 8} height="24" /><rect class="attended" x=${x3} y=${y(i) - 8} width=${Math.max(1, weight * (x4 - x3 - 70))} height="16" rx="2" /><text class="mono small" x=${x3 + Math.max(1, weight * (x4 - x3 - 70)) + 5} y=${y(i) + 4}>${percent(weight)}</text><//>`}
        ${value && html`<g opacity=${(0.25 + 0.75 * Math.sqrt(weight)).toFixed(2)}>${vector(value, [x4, y(i) - 7, width - x4 - 6, 14], shades.v)}</g>`}</g>`;
    })}</svg>`;
}
