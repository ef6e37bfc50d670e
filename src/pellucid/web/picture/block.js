// One block from near: every operation as a box with its shape, its kernel, its weights, and the values of the chosen token.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { STRIP } from "/web/picture/flow.js";
import { bytes, operationsOf, shortName } from "/web/picture/graph.js";
import { UNIT } from "/web/picture/layout.js";
import { bent, link, strip, strongest } from "/web/picture/marks.js";
import { Part, fit } from "/web/picture/svg.js";
import { State } from "/web/parts/show.js";

const LEAST = 118, MOST = 168, TALL = 92, GAP = 24, ROW_GAP = 12; // pixels of a box and between boxes

/**
 * Boxes of operations and the links between them: {boxes: [{operation, x, y}], links: [[from, to]], width, height}. Operations of
 * one part stand beside each other by their depth; the parts follow each other downwards.
 */
export function laidOut(operations, width, scale) {
  const tall = TALL * scale, gap = GAP * scale, names = new Set(operations.map((one) => one.name)), boxes = [];
  const parts = [...new Set(operations.map(partOf))].map((part) => byDepth(operations.filter((one) => partOf(one) === part)));
  const longest = Math.max(1, ...parts.map((columns) => columns.length)), wide = Math.max(LEAST * scale, Math.min(MOST * scale, (width - 16 + gap) / longest - gap)), most = Math.max(1, Math.floor((width - 16 + gap + 1) / (wide + gap)));
  let top = 8;
  for (const columns of parts) {
    // Where a part has more steps than there is room for, it goes on below.
    for (let from = 0; from < columns.length; from += most) {
      const some = columns.slice(from, from + most), high = Math.max(...some.map((column) => column.length));
      some.forEach((column, c) => column.forEach((operation, r) => boxes.push({ operation, x: 8 + c * (wide + gap), y: top + (r + (high - column.length) / 2) * (tall + ROW_GAP) })));
      top += high * (tall + ROW_GAP) + 12;
    }
  }
  const places = new Map(boxes.map((one) => [one.operation.name, one]));
  const links = operations.flatMap((one) => one.inputs.filter((input) => names.has(input)).map((input) => [places.get(input), places.get(one.name)]));
  return { boxes, links, wide, tall, width, height: top };
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
  return first && name in info.points && operations.some((one) => one.inputs.includes(name)) ? [{ name, kernel: "", bytes: 0, inputs: [], part: partOf(first), title: layer > 0 ? `residual of block ${layer - 1}` : name }] : [];
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

export function Block({ look, at, choose, width, scale }) {
  const { info } = look, operations = operationsOf(info, at.block).filter((one) => one.name in info.points && info.points[one.name].kind !== "state" && !isAlias(one));
  operations.unshift(...incoming(info, at.block, operations));
  const plain = operations.filter(({ name }) => ["value", undefined].includes(info.points[name].kind) && !(info.points[name].shape ?? "").includes("T'"));
  const state = useTrace(look, look.ids.length && plain.length ? { points: plain.map((one) => `${one.name}[tokens=${at.token}]`) } : {});
  const { boxes, links, wide, tall, height } = laidOut(operations, width, scale), size = UNIT * scale;
  if (!operations.length) return html`<p class="empty">The file does not say which operations this block has.</p>`;
  return html`<div><${State} state=${{ ...state, arrays: state.arrays ?? (plain.length ? undefined : {}) }}><span></span><//>
    <svg class="picture-svg block-view" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} font-size=${size} role="group" aria-label=${`the operations of block ${at.block}`}>
    <g class="links">${links.map(([from, to], i) => html`<path key=${i} class=${from.operation.name === at.point || to.operation.name === at.point ? "chosen" : ""} d=${to.x > from.x + 2 * wide && isCrossed(boxes, from, to) ? around(boxes, from, to, wide, tall) : to.x > from.x ? link(from.x + wide, from.y + tall / 2, to.x, to.y + tall / 2) : `M${from.x + wide / 2} ${from.y + tall}C${from.x + wide / 2} ${from.y + tall + 30} ${to.x + wide / 2} ${to.y - 30} ${to.x + wide / 2} ${to.y}`} />`)}</g>
    ${boxes.map(({ operation, x, y }) => html`<${Operation} key=${operation.name} operation=${operation} x=${x} y=${y} wide=${wide} tall=${tall} values=${state.arrays?.[operation.name]?.values} info=${info} at=${at} choose=${choose} size=${size} />`)}</svg></div>`;
}

/** Whether a box stands between two boxes, at the height of either. */
function isCrossed(boxes, from, to) {
  return boxes.some(({ x, y }) => x > from.x && x < to.x && (Math.abs(y - from.y) < 60 || Math.abs(y - to.y) < 60));
}

/** A link below the boxes that stand between two boxes. */
function around(boxes, from, to, wide, tall) {
  const low = Math.max(...boxes.filter(({ x, y }) => x >= from.x && x <= to.x && Math.abs(y - from.y) < 3 * tall).map(({ y }) => y)) + tall + 5, x0 = from.x + wide, x1 = to.x;
  return bent([[x0, from.y + tall / 2 + 8], [x0 + 8, from.y + tall / 2 + 8], [x0 + 8, low], [x1 - 8, low], [x1 - 8, to.y + tall / 2 + 8], [x1, to.y + tall / 2 + 8]], 6);
}

function Operation({ operation, x, y, wide, tall, values, info, at, choose, size }) {
  const { name, kernel, inputs, bytes: read } = operation, point = info.points[name], short = operation.title ?? shortName(name), part = short.split(".")[0];
  const isPattern = (point.shape ?? "").includes("T'"), sizes = (point.shape ?? "").replace(/^\(B, T, /, "(").replace(/^\(B, /, "("), some = values && values.subarray(0, STRIP);
  const open = () => choose(isPattern ? { point: name, view: "head", dim: -1 } : { point: name, view: "vector", dim: -1 });
  return html`<${Part} name=${`operation ${part} ${name === at.point ? "chosen" : ""}`} label=${`${short}: ${point.about ?? ""}. Shape ${point.shape ?? "not recorded"}. ${kernel || "no operation of its own"}${read ? `, reads ${bytes(read)} of weights` : ""}. From ${inputs.map(shortName).join(" and ") || "the token"}.`}
    about=${`${name}\n${point.about ?? ""}${kernel ? `\noperation ${kernel}` : ""}${read ? `\n${bytes(read)} of weights` : ""}`} data-point=${name} onClick=${open}>
    <rect class="box" x=${x} y=${y} width=${wide} height=${tall} rx="6" /><text class="head" x=${x + 8} y=${y + size * 1.25}>${fit(operation.title ?? short.replace(/^[^.]+\./, ""), wide - 16, size)}</text>
    <text class="small faint" x=${x + 8} y=${y + size * 2.3}>${fit(sizes, wide - 16, size * 0.85)}</text>
    ${some ? html`<g class="strip">${strip(some, [x + 8, y + size * 2.7, wide - 16, size * 1.1], strongest([some])).map(([shade, d]) => html`<path key=${shade} class=${shade} d=${d} />`)}</g>` : isPattern && html`<text class="small" x=${x + 8} y=${y + size * 3.5}>open the head ${at.head}</text>`}
    <text class="small faint" x=${x + 8} y=${y + tall - 6 - size}>${fit(kernel, wide - 16, size * 0.85)}</text><text class="small faint" x=${x + 8} y=${y + tall - 6}>${read ? `${bytes(read)} of weights` : ""}</text><//>`;
}
