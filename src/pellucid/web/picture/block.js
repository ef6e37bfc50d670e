// One block from near: every operation as a box with its shape, its kernel, its weights, and the values of the chosen token.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { STRIP } from "/web/picture/flow.js";
import { operationsOf, shortName } from "/web/picture/graph.js";
import { UNIT } from "/web/picture/layout.js";
import { bent, link, strip, strongest } from "/web/picture/marks.js";
import { Part, fit, wrapped } from "/web/picture/svg.js";
import { State } from "/web/parts/show.js";
import { counted } from "/web/parts/text.js";

const LEAST = 108, MOST = 168, TALL = 106, GAP = 24, ROW_GAP = 12, LEFT = 16; // pixels of a box, between boxes, and before the first
const LANE = 6, BESIDE = 9; // between links that run beside each other, and between a link and a box

/**
 * Boxes of operations and the links between them: {boxes: [{operation, x, y}], links: [[from, to, path]], wide, tall, height}.
 * Operations of one part stand beside each other by their depth; the parts follow each other downwards. A link that skips
 * boxes runs between the rows.
 */
export function laidOut(operations, width) {
  const names = new Set(operations.map((one) => one.name)), parts = [...new Set(operations.map(partOf))].map((part) => byDepth(operations.filter((one) => partOf(one) === part)));
  const room = width - 2 * LEFT + GAP, longest = Math.max(1, ...parts.map((columns) => columns.length)), most = Math.max(1, Math.min(longest, Math.floor(room / (LEAST + GAP)))), wide = Math.min(MOST, room / most - GAP);
  // Where a part has more steps than there is room for, it goes on below.
  const rows = parts.flatMap((columns) => Array.from({ length: Math.ceil(columns.length / most) }, (_, n) => columns.slice(n * most, (n + 1) * most))), boxes = [];
  rows.forEach((columns, row) => columns.forEach((column, c) => column.forEach((operation, n) => boxes.push({ operation, row, column: c, n, isTop: n === 0, isLow: n === column.length - 1, count: column.length, x: LEFT + c * (wide + GAP) }))));
  const places = new Map(boxes.map((one) => [one.operation.name, one]));
  const links = operations.flatMap((one) => one.inputs.filter((input) => names.has(input)).map((input) => [places.get(input), places.get(one.name)])), lanes = rows.map(() => 0).concat(0);
  const gutters = links.map(([from, to]) => gutterOf(from, to)), lane = gutters.map((gutter) => (gutter === null ? 0 : lanes[gutter]++));
  const tops = [0], edge = (gutter) => 2 * BESIDE + LANE * Math.max(0, lanes[gutter] - 1);
  const high = rows.map((columns) => Math.max(...columns.map((column) => column.length)));
  high.forEach((count, row) => tops.push(tops[row] + edge(row) + count * (TALL + ROW_GAP) - ROW_GAP));
  for (const one of boxes) one.y = tops[one.row] + edge(one.row) + (one.n + (high[one.row] - one.count) / 2) * (TALL + ROW_GAP);
  const paths = links.map(([from, to], i) => (gutters[i] === null ? direct(from, to, wide) : around(from, to, wide, tops[gutters[i]] + BESIDE + LANE * lane[i])));
  return { boxes, links: links.map((one, i) => [...one, paths[i]]), wide, height: tops.at(-1) + edge(rows.length) };
}

/** Between which rows a link runs: the number of the row below it. Null for neighbours. */
function gutterOf(from, to) {
  if (from.row === to.row) return to.column === from.column + 1 ? null : from.isTop ? from.row : from.row + 1;
  return to.row === from.row + 1 && to.column === from.column && from.isLow && to.isTop ? null : from.row + 1;
}

function direct(from, to, wide) {
  if (from.row === to.row) return link(from.x + wide, from.y + TALL / 2, to.x, to.y + TALL / 2);
  return `M${from.x + wide / 2} ${from.y + TALL}V${to.y}`;
}

/** A link along `lane`, the height of a place between two rows: it leaves and arrives where no other box is in its way. */
function around(from, to, wide, lane) {
  const isAbove = lane < from.y, isFree = isAbove ? from.isTop : from.isLow, before = from.x + wide + GAP / 3, after = to.x - GAP / 3;
  const start = isFree ? [[from.x + wide / 2, isAbove ? from.y : from.y + TALL]] : [[from.x + wide, from.y + TALL / 2 + 8], [before, from.y + TALL / 2 + 8]];
  const isBelow = lane < to.y, isOpen = isBelow ? to.isTop && to.row - from.row < 2 : to.isLow;
  const end = isOpen ? [[to.x + wide / 2, isBelow ? to.y : to.y + TALL]] : [[after, to.y + TALL / 2 + 8], [to.x, to.y + TALL / 2 + 8]];
  return bent([...start, [start.at(-1)[0], lane], [end[0][0], lane], ...end], 6);
}

/** Operations in columns: each stands after those that it reads. */
function byDepth(operations) {
  const own = new Set(operations.map((one) => one.name)), depth = new Map(), columns = [];
  for (const one of operations) {
    depth.set(one.name, Math.max(0, ...one.inputs.filter((input) => own.has(input)).map((input) => (depth.get(input) ?? 0) + 1)));
    (columns[depth.get(one.name)] ??= []).push(one);
  }
  return columns;
}

/** The residual stream before the block, as a box that the first operations read. */
function incoming(info, layer, operations) {
  const [first] = operations, name = layer > 0 ? `blocks.${layer - 1}.residual` : info.graph.stream ?? "embed";
  return first && name in info.points && operations.some((one) => one.inputs.includes(name)) ? [{ name, kernel: "", bytes: 0, inputs: [], part: partOf(first), from: layer > 0 ? `of block ${layer - 1}` : "" }] : [];
}

function partOf({ name, part: own }) {
  if (own) return own;
  const [, part, rest] = name.match(/^blocks\.\d+\.([^.]+)(\..+)?$/) ?? [];
  return rest ? part : "block";
}

/** Whether a point is only another name of its one input. */
function isAlias({ kernel, inputs }) {
  return !kernel && inputs.length === 1;
}

export function Block({ look, at, choose, width }) {
  const { info } = look, operations = operationsOf(info, at.block).filter((one) => one.name in info.points && info.points[one.name].kind !== "state" && !isAlias(one));
  operations.unshift(...incoming(info, at.block, operations));
  const plain = operations.filter(({ name }) => ["value", undefined].includes(info.points[name].kind) && !(info.points[name].shape ?? "").includes("T'"));
  const state = useTrace(look, look.ids.length && plain.length ? { points: plain.map((one) => `${one.name}[tokens=${at.token}]`) } : {});
  const { boxes, links, wide, height } = laidOut(operations, width);
  if (!operations.length) return html`<p class="empty">The file does not say which operations this block has.</p>`;
  return html`<div><${State} state=${{ ...state, arrays: state.arrays ?? (plain.length ? undefined : {}) }}><span></span><//>
    <svg class="picture-svg block-view" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} font-size=${UNIT} role="group" aria-label=${`the operations of block ${at.block}`}>
    <g class="links">${links.map(([from, to, path], i) => html`<path key=${i} class=${from.operation.name === at.point || to.operation.name === at.point ? "chosen" : ""} d=${path} />`)}</g>
    ${boxes.map(({ operation, x, y }) => html`<${Operation} key=${operation.name} operation=${operation} x=${x} y=${y} wide=${wide} values=${state.arrays?.[operation.name]?.values} info=${info} at=${at} choose=${choose} />`)}</svg></div>`;
}

const SMALL = UNIT * 0.85, INSIDE = 7; // the type of a box's details, and its edge

function Operation({ operation, x, y, wide, values, info, at, choose }) {
  const { name, kernel, inputs, bytes: read, from } = operation, point = info.points[name], short = shortName(name), part = short.split(".")[0], room = wide - 2 * INSIDE;
  const isPattern = (point.shape ?? "").includes("T'"), sizes = (point.shape ?? "").replace(/^\(B, T, /, "(").replace(/^\(B, /, "("), some = values && values.subarray(0, STRIP), weights = read ? `${counted(read)} bytes of weights` : "";
  const open = () => choose(part === "cross" && isPattern ? { point: name, panel: "source", dim: -1 } : isPattern ? { point: name, view: "head", dim: -1 } : { point: name, view: "vector", dim: -1 });
  const lines = wrapped(from ?? kernel, room, SMALL), low = (line) => y + TALL - 7 - (SMALL + 1.5) * (lines.length - line);
  return html`<${Part} name=${`operation ${part} ${name === at.point ? "chosen" : ""}`} label=${`${short}: ${point.about ?? ""}. Shape ${point.shape ?? "not recorded"}. ${kernel || "no operation of its own"}${weights && `, reads ${weights}`}. From ${inputs.map(shortName).join(" and ") || "the token"}.`}
    about=${`${name}\n${point.about ?? ""}${kernel ? `\noperation ${kernel}` : ""}${weights && `\n${weights}`}`} data-point=${name} onClick=${open}>
    <rect class="box" x=${x} y=${y} width=${wide} height=${TALL} rx="6" /><text class="head" x=${x + INSIDE} y=${y + UNIT * 1.25}>${fit(short.replace(/^[^.]+\./, ""), room, UNIT * 1.06)}</text>
    <text class="small faint" x=${x + INSIDE} y=${y + UNIT * 2.3}>${fit(sizes, room, SMALL)}</text>
    ${some ? html`<g class="strip">${strip(some, [x + INSIDE, y + UNIT * 2.7, room, UNIT * 1.1], strongest([some])).map(([shade, d]) => html`<path key=${shade} class=${shade} d=${d} />`)}</g>` : isPattern && html`<text class="small" x=${x + INSIDE} y=${y + UNIT * 3.5}>open the head ${at.head}</text>`}
    ${lines.map((line, n) => html`<text key=${n} class="small faint" x=${x + INSIDE} y=${low(n)}>${line}</text>`)}<text class="small faint" x=${x + INSIDE} y=${y + TALL - 7}>${read ? `${counted(read)} B` : ""}</text><//>`;
}
