// The columns of the picture: what each stage has for each row. A column gets the scene: see `Scene` in whole.js.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { link, spindle, strip, strongest } from "/web/picture/marks.js";
import { Part, fit, widthOf } from "/web/picture/svg.js";
import { scoresOf, strongestOf } from "/web/parts/numbers.js";
import { counted, number, percent, shown } from "/web/parts/text.js";

const FAINT = 0.08, LABELLED = 0.12; // weights of other rows' arcs that are drawn; weights that have a number
const NEURONS = 7, CANDIDATES = 12, EXPERTS = 3, TRIES = 90; // TRIES: pixels by which the sliders begin left of their column

function text({ rows, column, scene }) {
  const { y, labels, at, choose, size, promptLength, stop } = scene, right = column.x + column.width - 6;
  return rows.map((row, i) => {
    if (row.t === undefined) {
      const count = row.to - row.from, middle = Math.floor((row.from + row.to) / 2);
      return html`<${Part} key=${`fold${row.from}`} name="fold" label=${`${count} more tokens`} stop=${false} onClick=${() => choose({ token: middle })}>
        <rect class="hit" x=${column.x} y=${y(i) - 12} width=${column.width} height="24" /><text class="faint small" x=${right} y=${y(i) + 4} text-anchor="end">⋮ ${counted(count)} more</text><//>`;
    }
    const label = shown(labels[row.t] ?? ""), made = row.t >= promptLength, chosen = row.t === at.token;
    return html`<${Part} key=${row.t} name=${`token ${made ? "made" : ""} ${chosen ? "chosen" : ""}`} label=${`token ${row.t}: ${label}`} pressed=${chosen} stop=${row.t === stop} data-token=${row.t} onClick=${() => choose({ token: row.t, key: -1, dim: -1, point: "" })}>
      <rect class="hit" x=${column.x} y=${y(i) - 13} width=${column.width} height="26" /><text class="word" x=${right} y=${y(i) + 5} text-anchor="end">${fit(label, column.width - 10, size * 1.15)}</text><//>`;
  });
}

function tokens({ rows, column, scene }) {
  const { y, ids } = scene, middle = column.x + column.width / 2;
  return rows.map((row, i) => row.t !== undefined && html`<g key=${row.t}><path class="thread" d=${`M${column.x} ${y(i)}h8M${column.x + column.width - 8} ${y(i)}h8`} />
    <text class="mono faint" x=${middle} y=${y(i) + 4} text-anchor="middle">${ids[row.t]}</text></g>`);
}

function embed({ rows, column, scene }) {
  const { y, flow, choose } = scene, box = (i) => [column.x + 4, y(i) - 7, column.width - 8, 14];
  return rows.map((row, i) => {
    if (row.t === undefined) return null;
    const values = flow.embed(row.t), [x, top, width, height] = box(i);
    return html`<g key=${row.t} class=${`strip ${scene.at.point === "embed" && row.t === scene.at.token ? "chosen" : ""}`} data-point="embed" data-token=${row.t} onClick=${() => choose({ token: row.t, point: "embed", view: "vector", dim: -1 })}>
      <rect class="empty" x=${x} y=${top} width=${width} height=${height} />${values && strip(values, [x, top, width, height], strongest([values])).map(([name, d]) => html`<path key=${name} class=${name} d=${d} />`)}</g>`;
  });
}

function position({ rows, column, scene }) {
  const { y, flow } = scene, x = column.x + column.width / 2 - 7;
  return rows.map((row, i) => {
    if (row.t === undefined) return null;
    const turn = flow.turn(row.t), isDial = turn !== null;
    return html`<g key=${row.t}>${isDial && html`<circle class="dial" cx=${x} cy=${y(i)} r="7" />${turn && html`<path class="hand" d=${`M${x} ${y(i)}L${(x + 6 * turn[1]).toFixed(1)} ${(y(i) - 6 * turn[0]).toFixed(1)}`} />`}`}
      <text class="small faint" x=${isDial ? x + 11 : x + 7} y=${y(i) + 4} text-anchor=${isDial ? "start" : "middle"}>${row.t}</text></g>`;
  });
}

function norm({ rows, column, scene }) {
  const x = column.x + column.width / 2 - 6;
  return rows.map((row, i) => row.t !== undefined && html`<rect key=${row.t} class="norm" x=${x} y=${scene.y(i) - 8} width="12" height="16" rx="3" />`);
}

function qkv({ rows, column, scene }) {
  const { at, choose, look } = scene, width = Math.min(14, (column.width - 8) / 3.4), gap = (column.width - 3 * width) / 2 - 3, layer = at.block;
  return rows.map((row, i) => row.t !== undefined && html`<g key=${row.t} class=${row.t === at.token ? "" : "dim"}>${["q", "k", "v"].map((name, n) => {
    const point = `blocks.${layer}.attention.${name}`, x = column.x + 3 + n * (width + gap);
    return html`<rect key=${name} class=${`qkv ${name} ${isInput(name, row.t, at) ? "input" : ""}`} x=${x} y=${scene.y(i) - 8} width=${width} height="16" rx="2" onClick=${() => point in look.info.points && choose({ token: row.t, point, view: "vector", dim: -1 })}><title>${`${name} of ${shown(scene.labels[row.t] ?? "")}`}</title></rect>`;
  })}</g>`);
}

/** Whether a vector is an input of the chosen weight or of what the weight carries: the query of the token that reads, key and value of what it reads. */
function isInput(name, t, { point, token, key, block }) {
  return key >= 0 && point === `blocks.${block}.attention.pattern` && (name === "q" ? t === token : t === key);
}

function pattern({ rows, column, scene }) {
  const { y, flow, before, at, choose, labels, size, isMoving } = scene, [x0, x1] = [column.x + 4, column.x + column.width - 6], where = new Map(rows.map((row, i) => [row.t, i]));
  const folds = rows.flatMap((row, i) => (row.t === undefined ? [[row.from, row.to, i]] : []));
  const placeOf = (t) => where.get(t) ?? folds.find(([from, to]) => t >= from && t < to)?.[2] ?? -1;
  const faint = [], strong = [];
  rows.forEach((row, i) => {
    // While tokens come, the arcs of the chosen row alone are drawn: a hundred faint arcs cost more than all the rest.
    const isChosen = row.t === at.token, weights = row.t !== undefined && (isChosen || !isMoving) && flow.pattern(row.t);
    if (!weights) return;
    const sums = new Map();
    rows.forEach((one, to) => {
      const sum = one.t === undefined ? weights.subarray(one.from, one.to).reduce((a, b) => a + b, 0) : weights[one.t];
      if (sum > 0) sums.set(to, sum);
    });
    for (const [to, weight] of sums) if (isChosen ? weight > 0.004 : weight > FAINT) (isChosen ? strong : faint).push({ to, i, weight, t: row.t, s: rows[to].t });
  });
  const old = before && before.pattern(at.token), i = where.get(at.token);
  const keyOf = (one) => one.s ?? strongestKey(flow.pattern(one.t), rows[one.to]);
  const pick = (one) => choose({ key: keyOf(one), point: `blocks.${at.block}.attention.pattern`, dim: -1 });
  const spoken = (one) => `${shown(labels[one.t] ?? "")} looks at ${one.s === undefined ? "folded tokens" : shown(labels[one.s] ?? "")}: ${percent(one.weight)}`;
  const best = strong.reduce((top, one) => (one.weight > (top?.weight ?? LABELLED) ? one : top), null);
  return html`<g class="pattern">
    <g class="faint-arcs">${faint.map((one) => html`<path key=${`${one.i}-${one.to}`} d=${link(x0, y(one.to), x1, y(one.i))} stroke-width=${(0.5 + 4 * one.weight).toFixed(1)} />`)}</g>
    ${old && i !== undefined && html`<g class="before-arcs">${Array.from(old.entries()).filter(([s, weight]) => weight > 0.02 && placeOf(s) >= 0).map(([s, weight]) => html`<path key=${s} d=${link(x0, y(placeOf(s)), x1, y(i))} stroke-width=${(0.6 + 6 * weight).toFixed(1)} />`)}</g>`}
    <g class="arcs">${strong.map((one) => html`<g key=${one.to} class=${one.s === at.key ? "chosen" : ""} data-key=${one.s} data-weight=${one.weight.toPrecision(6)} onClick=${() => pick(one)}><path class="line" d=${link(x0, y(one.to), x1, y(one.i))} stroke-width=${(0.6 + 9 * one.weight).toFixed(1)} />
      ${!isMoving && html`<path class="reach" d=${link(x0, y(one.to), x1, y(one.i))} stroke-width="12" /><title>${spoken(one)}</title>`}</g>`)}</g>
    ${rows.map((row, n) => row.t !== undefined && html`<circle key=${n} class="foot" cx=${x1} cy=${y(n)} r=${row.t === at.token ? 3.5 : 1.5} />`)}
    ${best && html`<${Badge} label=${`${spoken(best)}: its formula`} onClick=${() => pick(best)} x=${(x0 + x1) / 2} y=${(y(best.to) + y(best.i)) / 2} text=${percent(best.weight)} size=${size} left=${column.x} />`}</g>`;
}

/** The token of a fold that has the largest weight. */
function strongestKey(weights, { from, to }) {
  let best = from;
  for (let s = from; s < to; s++) if (weights[s] > weights[best]) best = s;
  return best;
}

function Badge({ x, y, text: written, size, left, label, onClick }) {
  const width = widthOf(written, size) + 14, from = Math.max(left, x - width / 2);
  return html`<${Part} name="badge" label=${label} onClick=${onClick}><rect class="hit" x=${from - 2} y=${y - 12} width=${width + 4} height="24" rx="12" /><rect x=${from} y=${y - 10} width=${width} height="20" rx="10" /><text x=${from + width / 2} y=${y + 4.5} text-anchor="middle">${written}</text><//>`;
}

function state({ rows, column, scene }) {
  const { y } = scene, x = column.x + column.width / 2, inside = rows.map((row, i) => [row, i]).filter(([row]) => row.t !== undefined);
  return html`<g class="state">${inside.map(([row, i], n) => html`<g key=${row.t}>
    ${n > 0 && html`<path class="carried" d=${`M${x} ${y(inside[n - 1][1]) + 9}V${y(i) - 9}`} marker-end="url(#tip)" />`}<rect x=${x - 22} y=${y(i) - 9} width="44" height="18" rx="9" /></g>`)}</g>`;
}

/** The token of the source that each token looks at most in the chosen head. */
function source({ rows, column, scene }) {
  const { y, flow, at, choose, look, size } = scene;
  return rows.map((row, i) => {
    const weights = row.t !== undefined && flow.cross(row.t);
    if (!weights) return null;
    const [[best, weight]] = strongestOf(weights, 1), label = shown(look.source.pieces[best] ?? ""), said = `${shown(scene.labels[row.t] ?? "")} looks at ${label} in the source: ${percent(weight)}`;
    return html`<${Part} key=${row.t} name=${`source ${row.t === at.token ? "" : "dim"}`} label=${said} about=${said} stop=${row.t === at.token} data-source=${best} data-weight=${weight.toPrecision(6)} onClick=${() => choose({ token: row.t, source: best, panel: "source" })}>
      <rect class="hit" x=${column.x} y=${y(i) - 12} width=${column.width} height="24" /><rect class="attended" x=${column.x + 4} y=${y(i) - 9} width=${Math.max(1, weight * (column.width - 8))} height="18" rx="2" />
      <text class="word" x=${column.x + 8} y=${y(i) + 4}>${fit(label, column.width - 12, size)}</text><//>`;
  });
}

function neurons({ rows, column, scene }) {
  const { y, flow, at, choose, look } = scene, [x, width] = [column.x + 4, column.width - 8], point = `blocks.${at.block}.feedforward.hidden`;
  const values = scene.isRead ? flow.hidden : null, top = values ? strongestOf(values, NEURONS) : [], most = Math.abs(top[0]?.[1] ?? 1) || 1;
  return rows.map((row, i) => row.t !== undefined && html`<g key=${row.t} class=${`neurons ${row.t === at.token ? "" : "dim"}`} onClick=${() => point in look.info.points && choose({ token: row.t, point, view: "vector", dim: -1 })}>
    <path class="spindle" d=${spindle(x, y(i) - 11, width, 22)} />
    ${row.t === at.token && top.map(([neuron, value], n) => html`<rect key=${neuron} data-neuron=${neuron} class=${`neuron ${at.point === point && at.dim === neuron ? "chosen" : ""}`} x=${x + width / 2 - NEURONS * 3.5 + n * 7} y=${y(i) - 10 * (Math.abs(value) / most)} width="5" height=${Math.max(1, 20 * (Math.abs(value) / most))}
      onClick=${(event) => { event.stopPropagation(); choose({ point, dim: neuron }); }}><title>${`neuron ${neuron}: ${number(value)}`}</title></rect>`)}</g>`);
}

function experts({ rows, column, scene }) {
  const { y, flow, at } = scene;
  return rows.map((row, i) => {
    if (row.t === undefined) return null;
    const chosen = flow.experts(row.t) ?? [], some = [...chosen].sort((a, b) => b[1] - a[1]).slice(0, EXPERTS), width = (column.width - 8) / Math.max(1, Math.min(EXPERTS, chosen.length || 1));
    return html`<g key=${row.t} class=${`experts ${row.t === at.token ? "" : "dim"}`}>${some.map(([expert, weight], n) => html`<g key=${expert}><rect x=${column.x + 4 + n * width} y=${y(i) - 9} width=${width - 3} height="18" rx="4" /><rect class="share" x=${column.x + 4 + n * width} y=${y(i) - 9} width=${Math.max(0, (width - 3) * Math.min(1, weight))} height="18" rx="4" />
      <text class="small" x=${column.x + 4 + n * width + (width - 3) / 2} y=${y(i) + 4} text-anchor="middle">${expert}</text><title>${`expert ${expert}: weight ${percent(weight)}`}</title></g>`)}</g>`;
  });
}

function add({ rows, column, scene }) {
  const { y, flow, before, at } = scene, x = column.x + column.width / 2;
  return rows.map((row, i) => {
    if (row.t === undefined) return null;
    const added = flow.added(at.block, column.part, row.t), into = flow.into(column.part, row.t), old = before?.added(at.block, column.part, row.t);
    const radius = (value) => 4 + 7 * Math.min(1, Math.sqrt(value / (into || value || 1)));
    return html`<g key=${row.t} class=${`add ${column.part}`} data-added=${added?.toPrecision(6)}>${old !== undefined && html`<circle class="before" cx=${x} cy=${y(i)} r=${radius(old).toFixed(1)} />`}
      <circle cx=${x} cy=${y(i)} r=${added === undefined ? 4 : radius(added).toFixed(1)} class=${added === undefined ? "unread" : ""} /><path class="sign" d=${`M${x - 3} ${y(i)}h6M${x} ${y(i) - 3}v6`} />
      <title>${added === undefined ? "not read yet" : `adds a vector of length ${number(added)} to one of ${number(into ?? NaN)}`}</title></g>`;
  });
}

function logits({ column, scene, rows }) {
  const { candidates, y, size, nameOf, at, choose, old } = scene, i = rows.findIndex((row) => row.t === at.token), width = column.width - 46, low = Math.min(...candidates.map((one) => one.logit)), high = Math.max(...candidates.map((one) => one.logit));
  return html`<g class="logits">${i >= 0 && column.x > 20 && candidates.length > 0 && html`<path class="to-logits" d=${link(column.x - 10, y(i), column.x + 2, y(0))} />`}
    ${candidates.map((one, n) => html`<${Part} key=${n} name="logit" stop=${n === 0} label=${`${shown(nameOf(one.token) ?? `#${one.token}`)} ${Number.isFinite(one.logit) ? one.logit.toFixed(2) : ""}: its logit`} data-candidate=${one.token} data-logit=${one.logit?.toPrecision(7)} onClick=${() => choose({ point: "project.logits", dim: one.token, key: -1 })}>
      <rect class="hit" x=${column.x} y=${y(n) - 13} width=${column.width} height="26" />
      ${Number.isFinite(one.logit) && html`<rect class="score" x=${column.x + 6} y=${y(n) - 9} width=${Math.max(2, (0.25 + (0.75 * (one.logit - low)) / (high - low || 1)) * width)} height="18" rx="2" />`}
      <text class="word" x=${column.x + 10} y=${y(n) + 4}>${fit(shown(nameOf(one.token) ?? `#${one.token}`), width - 10, size * 1.1)}</text> ${""}
      ${old?.has(one.token) && html`<text class="small before" x=${column.x + 10} y=${y(n) + 14}>${`before ${old.get(one.token).logit.toFixed(2)}`}</text>`}
      ${Number.isFinite(one.logit) && html`<text class="mono small faint" x=${column.x + column.width - 2} y=${y(n) + 4} text-anchor="end">${one.logit.toFixed(2)}</text>`}<//>`)}</g>`;
}

/** The probabilities after temperature and cuts, before them as a dashed outline, and the line of the cuts. */
function softmax({ column, scene }) {
  const { candidates, y, onDraw, nameOf, drawn, old, isGiven, look, kept, form, choose, tries, phase, replay } = scene, width = column.width - 54, isFixed = !look.info.generates, left = column.x + 4, cut = phase >= 2 && kept > 0 && kept < candidates.length ? kept : 0, share = (one) => (phase === 0 ? one.plain : phase === 1 ? one.warm : one.last) || 0;
  const cuts = [form?.topP < 1 && `top-p ${form.topP}`, form?.topK > 0 && `top-k ${form.topK}`].filter(Boolean).join(", ");
  return html`${phase >= 0 && candidates.map((one, n) => {
    const isDrawn = one.token === drawn, label = shown(nameOf(one.token) ?? `#${one.token}`), was = old?.get(one.token)?.last;
    const written = share(one) > 0 ? percent(share(one)) : n === cut ? `cut by ${cuts.split(", ")[0] || "temperature 0"}` : "cut";
    return html`<${Part} key=${n} name=${`candidate ${isDrawn ? "is-drawn" : ""}`} stop=${n === 0} label=${`${label}: ${written}${isDrawn ? (isGiven ? ", given by the prompt" : ", drawn") : isFixed ? "" : ". Draw this token instead"}`} onClick=${() => onDraw(one)}
      about=${`${Number.isFinite(one.plain) ? `${percent(one.plain)} at temperature 1; ` : ""}${isFixed ? "the probability of this token here" : isDrawn ? (isGiven ? "given by the prompt" : "drawn") : "draw this token instead: the text branches here"}`} data-candidate=${one.token} data-probability=${one.last.toPrecision(7)} data-plain=${one.plain?.toPrecision(7)}>
      <rect class="hit" x=${column.x} y=${y(n) - 13} width=${column.width} height="26" />
      ${was !== undefined && html`<rect class="before" x=${left} y=${y(n) + 6} width=${Math.max(1, was * width)} height="4" />`}
      <rect class="share" x=${left} y=${y(n) - 9} width=${Math.max(1, share(one) * width)} height="18" rx="2" />
      ${!isFixed && phase > 0 && Number.isFinite(one.plain) && html`<rect class="ghost" x=${left} y=${y(n) - 10} width=${Math.max(1, one.plain * width)} height="20" rx="2" />`}
      <text class=${`small ${one.last > 0 ? "" : "faint"}`} x=${left + 5 + Math.max(1, Math.max(share(one), one.plain || 0) * width)} y=${y(n) + 4}>${written}</text><//>`;
  })}${cut > 0 && html`<g class="cut"><path d=${`M${column.x - 6} ${(y(cut - 1) + y(cut)) / 2}H${column.x + column.width - 4}`} /><title>${`${cuts || "temperature 0"} cuts the rest`}</title></g>`}
  ${tries && !replay?.isOn && html`<foreignObject x=${Math.max(0, column.x - TRIES)} y=${y(candidates.length) - 10} width=${column.width + 24 + Math.min(TRIES, column.x)} height="54"><div class="tries">${[["temperature", "temperature", 0, 2, 0.05, form.temperature], ["top-p", "top_p", 0.05, 1, 0.01, form.topP]].map(([label, name, low, high, step, value]) => html`<label key=${name}><span>${label}</span><input type="range" min=${low} max=${high} step=${step} value=${value} onInput=${(event) => choose({ [name]: +event.target.value })} /><output>${+value.toFixed(2)}</output></label>`)}</div></foreignObject>`}`;
}

function draw({ column, scene }) {
  if (scene.phase < 3) return null;
  const { drawnLabel, y, size, isGiven } = scene, width = Math.min(column.width - 4, Math.max(34, widthOf(drawnLabel ?? "?", size) + 20)), x = column.x + column.width - width;
  return html`<g class=${`drawn ${drawnLabel === null || isGiven ? "open" : ""}`}><rect x=${x} y=${y(0) - 14} width=${width} height="28" rx="14" /><text x=${x + width / 2} y=${y(0) + 5} text-anchor="middle">${fit(drawnLabel ?? "?", width - 14, size)}</text>
    <text class="small faint" x=${x + width / 2} y=${y(0) + 30} text-anchor="middle">${drawnLabel === null ? "not drawn" : isGiven ? "given" : "drawn"}</text></g>`;
}

function pooled({ rows, column, scene }) {
  const { y, flow, before, look, at } = scene, top = y(0), bottom = y(rows.length - 1), layer = look.info.blocks.length - 1, { each } = look.info.output ?? {};
  const middle = each ? y(Math.max(0, rows.findIndex((row) => row.t === at.token))) : (top + bottom) / 2;
  const drawn = (values, at, high) => values && strip(values, [column.x + 16, at, column.width - 20, high], strongest([values])).map(([name, d]) => html`<path key=${name + at} class=${name} d=${d} />`);
  return html`<g class="pooled">${!each && html`<path class="thread" d=${`M${column.x + 8} ${top}V${bottom}`} />`}<text class="small faint" x=${column.x + 16} y=${middle + 24}>${each ? "a vector for each token" : "one vector for the text"}</text><g class="strip">${drawn(flow.output, middle - 8, 16)}${before?.output && drawn(before.output, middle - 16, 5)}</g>
    <title>${`length after the last block, at the chosen token: ${number(flow.residual(layer, at.token) ?? NaN)}`}</title></g>`;
}

/** The labels of a text or of the chosen token, the highest score first. */
function labels({ column, scene, rows }) {
  const { y, flow, before, look, size } = scene, { labels: names, scale } = look.info.output, width = column.width - 60;
  if (!flow.output) return null;
  const scores = scoresOf(flow.output, scale), old = before?.output && scoresOf(before.output, scale), most = Math.max(...Array.from(scores, Math.abs), scale === "none" ? 1e-9 : 1);
  const ranked = names.map((name, n) => ({ name, n, score: scores[n] })).sort((a, b) => b.score - a.score).slice(0, Math.min(CANDIDATES, Math.max(rows.length, 3)));
  return html`<g class="labels">${ranked.map(({ name, n, score }, i) => html`<g key=${n} data-label=${name} data-score=${score.toPrecision(6)}>
    <rect class="share" x=${column.x + 8} y=${y(i) - 9} width=${Math.max(1, (Math.abs(score) / most) * width)} height="18" rx="2" />
    ${old && html`<rect class="before" x=${column.x + 8} y=${y(i) + 9} width=${Math.max(1, (Math.abs(old[n]) / most) * width)} height="4" />`}
    <text class="word" x=${column.x + 12} y=${y(i) + 4}>${fit(name, width - 8, size)}</text>
    <text class="mono small faint" x=${column.x + column.width - 2} y=${y(i) + 4} text-anchor="end">${scale === "none" ? number(score) : percent(score)}</text></g>`)}</g>`;
}

/**
 * Columns whose rows are drawn one by one: what a row's drawing depends on, beside the column's place. While tokens come, most
 * rows only move; a row is drawn again if one of these values is another.
 */
export const BY_ROW = {
  text: ({ t }, { labels, at, promptLength, stop }) => [labels[t], t >= promptLength, t === at.token, t === stop],
  tokens: ({ t }, { ids }) => [ids[t]],
  embed: ({ t }, { flow, at }) => [t, flow.embed(t), at.point === "embed" && t === at.token],
  position: ({ t }, { flow }) => [t, ...(flow.turn(t) || [flow.turn(t)])],
  norm: ({ t }) => [t],
  qkv: ({ t }, { at, labels }) => [t, t === at.token, at.block, labels[t], isInput("q", t, at), isInput("k", t, at)],
  source: ({ t }, { at, flow, labels }) => [t, t === at.token, flow.cross(t), labels[t]],
  neurons: ({ t }, { at, flow, isRead }) => [t, at.block, t === at.token && (isRead ? flow.hidden : null), t === at.token, t === at.token && at.dim],
  experts: ({ t }, { at, flow }) => [t, at.block, t === at.token, String(flow.experts(t))],
  add: ({ t }, { at, flow, before }, { part }) => [t, at.block, flow.added(at.block, part, t), flow.into(part, t), before?.added(at.block, part, t)],
};

export const COLUMNS = { text, tokens, embed, position, norm, qkv, pattern, state, source, neurons, experts, add, logits, softmax, draw, pooled, labels };
export const MAX_CANDIDATES = CANDIDATES;
