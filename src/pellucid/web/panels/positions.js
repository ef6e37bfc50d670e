// position: how the model knows where a token stands, and what the model does without it.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Effect } from "/web/panels/effect.js";
import { packed, shaped } from "/web/server/api.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, heat, lines, signedShade } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { number, shown } from "/web/parts/text.js";

const SAYS = {
  rotary: "The position turns pairs of components of the queries and keys by an angle, like the hands of a clock: the first pairs fast, the last ones slowly. A score depends on the distance of two tokens.",
  added: "A vector for each position is added to the embedding.",
  alibi: "Scores become smaller with the distance of two tokens (ALiBi), in each head at another rate: a head with a steep line looks near, the others look far.",
  relative: "The distance of two tokens changes their score, in each head in another way (relative positions).",
  unknown: "The file does not say how the model knows positions.",
  none: "This model has no positions: the order of the tokens is in the causal mask, or in recurrent states.",
};
const NOT_HERE = {
  alibi: "The page cannot take ALiBi out: the distances are a part of the attention operation.",
  added: "The page can take added positions out of an encoder only: the vectors of tokens that are not written yet are unknown.",
};
const NAMES = ["accent", "warm", "minus", "cool", "soft", "ink", "faint"], PAIRS = [0, 1, 2, 4, 8, 16, 32];
const MOST_DIMS = 192, CURVES = 5, FAR = 64, MOST_ORDER = 256; // components of a heat map; curves; tokens of distance; tokens that are read in two orders

export const positions = {
  id: "positions",
  title: "Positions",
  about: "Attention compares vectors and does not know their order. Positions tell it which token stands where.",
  has: () => true,
  View,
};

function View({ look, width, at, choose, edit }) {
  const { info } = look, angles = anglesOf(info), base = baseOf(info), needed = { rotary: angles, added: [base, "position"] }[info.position] ?? [],
    wanted = needed.every((one) => one in info.points) ? needed : [];
  const state = useTrace({ ...look, edits: [] }, { points: wanted }), { arrays } = state;
  const added = useMemo(() => (arrays && info.position === "added" ? difference(arrays.position, arrays[base]) : null), [arrays]);
  return html`<div><p>${SAYS[info.position]}</p>
    ${edit && wanted.length > 0 && html`<${Without} look=${look} added=${added} width=${width} at=${at} choose=${choose} edit=${edit} />`}${edit
      && (NOT_HERE[info.generates || info.position === "alibi" ? info.position : ""] && html`<p class="note">${NOT_HERE[info.position]}</p>`)}
    ${wanted.length > 0 && html`<${State} state=${state}>
      ${arrays && info.position === "rotary" && angles.map((one) => html`<${Angles} key=${one} of=${arrays[one]} width=${width}
        title=${angles.length > 1 && titleOf(one, info)} />`)}
      ${added && html`<${Added} vectors=${added} width=${width} />`}
    <//>`}
    ${info.slopes?.length > 0 && html`<${Slopes} slopes=${info.slopes} width=${width} />`}</div>`;
}

const anglesOf = (info) => Object.keys(info.points).filter((one) => one.startsWith("position.angles"));

/** The point before the positions are added. */
const baseOf = (info) => ("embed.types" in info.points ? "embed.types" : "embed");

function difference(a, b) {
  return shaped(a.values.map((x, i) => x - b.values[i]), a.shape);
}

/** The changes that take the positions out: {point: change}. Null where that cannot be done. `added` are the vectors of an encoder. */
function changesOf(info, added) {
  if (info.position === "rotary") {
    // A table has cosines, then sines. Cosine 1 and sine 0 rotate nothing.
    return Object.fromEntries(anglesOf(info).flatMap((name) => {
      const size = +(info.points[name].shape?.match(/(\d+)\)$/)?.[1] ?? 0);
      return [[`${name}[dims=0:${size / 2}]`, { edit: "replace", values: 1 }], [`${name}[dims=${size / 2}:${size}]`, { edit: "ablate" }]];
    }));
  }
  if (info.position === "added" && !info.generates) return { position: added && { edit: "add", ...packed(added.values, added.shape), factor: -1 } };
  return null;
}

/** The switch, and the same tokens in another order: what the model sees of the order with and without positions. */
function Without({ look, added, width, at, choose, edit }) {
  const changes = useMemo(() => changesOf(look.info, added), [look.info, added]);
  if (!changes) return null;
  const points = Object.keys(changes), isOut = points.every((point) => look.edits.some((one) => one.point === point)),
    isReady = Object.values(changes).every(Boolean);
  const turn = () => points.forEach((point) => edit(point, isOut ? null : changes[point]));
  const off = Object.entries(changes).map(([point, change]) => ({ ...change, point }));
  return html`<div class="without"><p><button type="button" class=${isOut ? "" : "main"} aria-pressed=${isOut} disabled=${!isReady} onClick=${turn}>
    ${isOut ? "Without positions: put them back" : "Without positions"}</button>
      ${isOut && html`<span class="note"> The picture shows the model without positions; grey is before.${look.info.generates
        && " Press Run to see what it writes."}</span>`}</p>
    ${isOut && html`<${Effect} look=${look} at=${at} choose=${choose} />`}
    ${isReady && look.promptLength > 3 && look.promptLength <= MOST_ORDER && html`<${Order} look=${look} off=${off} width=${width} />`}</div>`;
}

/** Tokens in reverse order; the first and the last stay where they are, so that both texts end with the same token. */
function reversed(ids) {
  return [ids[0], ...ids.slice(1, -1).reverse(), ids.at(-1)];
}

/** How much the last vector differs between the text and its tokens in reverse order, with and without positions. */
function Order({ look, off, width }) {
  const { info } = look, ids = look.ids.slice(0, look.promptLength), other = reversed(ids), last = ids.length - 1,
    kept = look.edits.filter((one) => !off.some((out) => out.point === one.point));
  const isOfText = info.output?.each === false && info.output.point in info.points, point = isOfText ? info.output.point : `blocks.*.residual[tokens=${last}]`,
    read = (tokens, edits) => useTrace({ ...look, ids: tokens, edits }, { points: [point] });
  const four = [read(ids, kept), read(other, kept), read(ids, [...kept, ...off]), read(other, [...kept, ...off])],
    state = four.find((one) => !one.arrays) ?? four[0];
  const [a, b, c, d] = four.map((one) => one.arrays), names = Object.keys(a ?? {}), isReady = four.every((one) => one.arrays);
  const series = isReady ? [["with positions", "stream", a, b],
    ["without positions", "accent", c, d]].map(([name, mark, one, two]) => ({ name, mark,
    values: names.map((point) => apart(one[point].values, two[point].values)) })) : [], most = Math.max(...series.flatMap((one) => one.values), 1e-6);
  return html`<div><h4>Does the order matter?</h4><p class="note">The same tokens in another order: <span class="piece">
    ${shown(other.map((id) => look.names[id] ?? "").join(""))}
    </span>. How much does ${isOfText ? "the vector of the text" : "the vector of the last token"} differ from that of your text?</p>
    <${State} state=${state}>${isReady && (names.length > 1
      ? html`<${Curves} series=${series} width=${width} low=${0} high=${most} of=${[a, b, c, d, width]}
        label=${`relative difference after each block: ${series.map((one) => `${one.name} ${number(one.values[0])} to ${number(one.values.at(-1))}`).join(", ")}`} />
        <p class="note">Blocks from left to right; the top is ${(100 * most).toFixed(0)} % of the vector's length. ${said(info, series[1].values[0])}</p>`
      : html`<dl class="facts-list">${series.map((one) => html`<dt key=${one.name}>${one.name}</dt><dd>${(100 * one.values[0]).toFixed(2)} % different</dd>`)}
        </dl><p class="note">Without positions an encoder sees a bag of words: both orders give the same vector.</p>`)}<//></div>`;
}

/** What the first block shows of the order without positions. */
function said(info, first) {
  if (info.blocks.some((one) => one.recurrent)) return "Recurrent layers read one token after the other, so they know the order without positions.";
  return `Without positions the first block sees no order: the difference is ${(100 * first).toFixed(2)} % there. `
    + "In later blocks some order returns, because each token sees only the tokens before it.";
}

/** The length of the difference of two vectors by the length of the first. */
function apart(a, b) {
  let size = 0, whole = 0;
  a.forEach((x, i) => {
    size += (x - b[i]) ** 2;
    whole += x * x;
  });
  return Math.sqrt(size / (whole || 1));
}

/** Lines with their names; `series` are {name, values}. */
function Curves({ series, width, low, high, label, of }) {
  const paint = (context, w, h) => lines(context, series.map(({ values, mark }, i) => ({ values, colour: colour(mark ?? NAMES[i]) })), [0, 4, w, h - 8], low,
    high);
  return html`<div><${Picture} width=${width} height=${150} paint=${paint} of=${of} label=${label} />
    <ul class="legend">${series.map(({ name, mark }, i) => html`<li key=${name}><span class=${`mark ${mark ?? NAMES[i]}`}></span>${name}</li>`)}</ul></div>`;
}

/** Which blocks rotate by some angles: models may have several, for near and for far tokens. */
function titleOf(name, info) {
  const blocks = info.angles?.[name];
  return blocks ? `Blocks ${blocks.join(", ")}` : name;
}

function Angles({ of, width, title }) {
  const [rows, columns] = of.shape, pairs = PAIRS.filter((one) => one < columns / 2);
  const series = pairs.map((pair) => ({ name: `cosine of pair ${pair}`, values: Array.from({ length: rows }, (_, t) => of.values[t * columns + pair]) }));
  return html`<div><h4>${title || "The angles at each position"}</h4>
    <${Curves} series=${series} width=${width} low=${-1} high=${1} of=${[of, width]}
    label=${`cosines of the angles of pairs ${pairs.join(", ")} at ${rows} positions${title ? `, ${title}` : ""}`} /></div>`;
}

function Added({ vectors: { values, shape: [rows, dims] }, width }) {
  const shownDims = Math.min(dims, MOST_DIMS), vectors = new Float32Array(rows * shownDims);
  for (let t = 0; t < rows; t++) vectors.set(values.subarray(t * dims, t * dims + shownDims), t * shownDims);
  const size = vectors.reduce((top, x) => Math.max(top, Math.abs(x)), 1e-9),
    column = (d) => Array.from({ length: rows }, (_, t) => vectors[t * shownDims + d]), spread = (all) => Math.max(...all) - Math.min(...all);
  // The components that change most with the position: curves of the others are flat.
  const some = Array.from({ length: shownDims }, (_, d) => [d, spread(column(d))]).sort((a, b) => b[1] - a[1]).slice(0, CURVES).map(([d]) => d).sort((a, b) => a - b);
  const series = some.map((d) => ({ name: `component ${d}`, values: column(d) })), top = Math.max(...series.flatMap((one) => one.values.map(Math.abs)), 1e-9);
  const paint = (context, w, h) => heat(context, vectors, rows, shownDims, [0, 0, w, h], signedShade(size));
  return html`<div><h4>The vectors of the positions</h4>
    <${Curves} series=${series} width=${width} low=${-top} high=${top} of=${[values, width]}
    label=${`the ${some.length} components of the added vectors that change most, at ${rows} positions`} />
    <${Picture} width=${width} height=${Math.min(320, Math.max(60, rows * 8))} paint=${paint} of=${[values, width]}
      label=${`the first ${shownDims} components of the vectors that are added at ${rows} positions, as a heat map`} /></div>`;
}

function Slopes({ slopes, width }) {
  const step = Math.ceil(slopes.length / NAMES.length), some = slopes.map((slope, head) => ({ slope, head })).filter(({ head }) => head % step === 0);
  const series = some.map(({ slope, head }) => ({ name: `head ${head}: ${number(slope)} per token`, values: Array.from({ length: FAR }, (_, distance) => -slope * distance) }));
  const low = -FAR * Math.max(...slopes);
  return html`<${Curves} series=${series} width=${width} low=${low} high=${0} of=${[slopes, width]} label=${`what is added to scores at distances from 0 to ${FAR - 1} tokens, head by head`} />`;
}
