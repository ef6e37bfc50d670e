// A recorded run: a safetensors file that pellucid wrote (trace/recorded.py), read here without a server's help.

import { shaped } from "/web/server/api.js";
import { MOST_HEADER, MOST_LISTED, MOST_TOKENS, areSmall, isCount, isOfHeads, isOfSource, isPattern, isText, sizeOf } from "/web/server/bounds.js";
import { Tree } from "/web/state/tree.js";

const KEY = "pellucid.run", VERSION = 1;
const MOST_LAYERS = 1024, MOST_PARTS = 1 << 20;
const KINDS = { F32: Float32Array, I32: Int32Array };

/** Read a file. Throws an Error whose message says what is wrong. */
export async function openRun(file) {
  return read(await file.arrayBuffer(), file.name);
}

/** Read the run that an element of the page holds: base64 of a file that gzip has compressed. */
export async function readRun(element) {
  const packed = Uint8Array.from(atob(element.textContent.trim()), (one) => one.charCodeAt(0));
  const bytes = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  return read(bytes, element.dataset.name);
}

let opened = 0;

/** {name, facts, arrays, answers} of a file's bytes, with its text and what the page must know of the model. */
function read(bytes, name) {
  const arrays = {}, { facts, header, start } = factsOf(bytes, name), tokens = facts.pieces.length, source = facts.source?.length ?? 0;
  let taken = 0;
  for (const [point, one] of Object.entries(header)) {
    if (point === "__metadata__") continue;
    const [from, to] = one?.data_offsets ?? [], Kind = KINDS[one?.dtype], count = sizeOf(point, one?.shape, tokens, source);
    taken += to - from; // no byte belongs to two arrays
    if (!Kind || count === null || !isCount(from) || to - from !== 4 * count || !(start + to <= bytes.byteLength) || !(start + taken <= bytes.byteLength)) throw new Error(`${name}: the array ${point} is damaged, or too large for the page`);
    const whole = count && filled(shaped(new Kind(bytes.slice(start + from, start + to)), one.shape), facts.parts?.[point], point, tokens, source);
    if (whole === null) throw new Error(`${name}: the whole of ${point}, of which it has a part, is too large for the page`);
    if (whole) arrays[point] = whole;
  }
  const answers = new Map();
  for (const [path, body, value] of facts.answers ?? []) answers.set(path, (answers.get(path) ?? new Map()).set(question(body), value));
  return { number: ++opened, name, facts, arrays, answers, info: infoOf(facts, arrays), text: textOf(facts, arrays), source: source ? { ids: facts.source, pieces: facts.source_pieces } : null };
}

function factsOf(bytes, name) {
  if (bytes.byteLength < 8) throw new Error(`${name} is no recorded run: it is too short`);
  const size = Number(new DataView(bytes).getBigUint64(0, true));
  if (size > MOST_HEADER || 8 + size > bytes.byteLength) throw new Error(`${name} is no recorded run: its header does not fit`);
  let header, facts;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.slice(8, 8 + size)));
    facts = JSON.parse(header.__metadata__[KEY]);
  } catch {
    throw new Error(`${name} is no recorded run of Pellucid`);
  }
  if (facts?.version !== VERSION) throw new Error(`${name} has version ${facts?.version}; this page reads ${VERSION}`);
  const all = (list, fits, most = MOST_LISTED) => Array.isArray(list) && list.length <= most && list.every(fits);
  const fits = all(facts.prompt, isCount, MOST_TOKENS) && all(facts.ids, isCount, MOST_TOKENS) && all(facts.pieces, isText, MOST_TOKENS) && facts.pieces.length === facts.prompt.length + facts.ids.length
    && all(facts.edits, isText) && all(facts.notes ?? [], isText) && all(facts.answers ?? [], (one) => Array.isArray(one) && isText(one[0])) && isText(facts.model?.name) && isText(facts.model.family) && isCount(facts.model.vocabulary) && (facts.question === undefined || isText(facts.question)) && all(facts.chain ?? [], (one) => isText(one?.name)) && areCharacters(facts.characters ?? [], facts.pieces.length)
    && all(facts.source ?? [], isCount, MOST_TOKENS) && all(facts.source_pieces ?? [], isText, MOST_TOKENS) && (facts.source ?? []).length === (facts.source_pieces ?? []).length;
  if (!fits || !areSmall([facts.answers, facts.chain, facts.finish_reason, facts.shape ?? null])) throw new Error(`${name}: what it says of the run is damaged, or too much for the page`);
  return { facts, header, start: 8 + size };
}

/** Whether a list has characters one after the other: [first, stop, text] of some of the tokens. */
function areCharacters(list, tokens) {
  let end = 0;
  return Array.isArray(list) && list.every((one) => {
    const [first, stop, text] = Array.isArray(one) ? one : [], fits = isCount(first) && isCount(stop) && first >= end && stop > first && stop <= tokens && isText(text);
    end = stop;
    return fits;
  });
}

/** What is asked, whatever the order of its fields and the name of the model. */
function question(body) {
  const { model, ...rest } = body ?? {};
  return JSON.stringify(Object.entries(rest).sort());
}

/** What a run holds of an answer of the server: {value}, or an error that says that it holds none. */
export function answerOf(recorded, path, body) {
  const value = recorded.answers.get(path)?.get(question(body));
  return value === undefined || value === null ? { error: new Error("The file has not recorded this.") } : { value };
}

/** The text of a run as the page has texts: its prompt, and its tokens as a tree with one branch. */
function textOf(facts, arrays) {
  const tree = new Tree(), count = facts.prompt.length;
  let leaf = 0;
  facts.ids.forEach((token, i) => {
    const probability = arrays["sample.probability"]?.values[i] ?? NaN, piece = facts.pieces[count + i];
    leaf = tree.add(leaf, { token, piece, text: piece, probability, alternatives: [] }).id;
  });
  return { prompt: facts.prompt, tree, leaf, characters: (facts.characters ?? []).map(([first, stop, text]) => ({ first, stop, text })) };
}

/** What the page must know of the model, as far as the file tells. */
function infoOf(facts, arrays) {
  const names = Object.keys(arrays), blocks = [], { shape = {} } = facts, { position, slopes, width, tokens, angles } = shape;
  for (const name of names) {
    const [, layer] = name.match(/^blocks\.(\d+)\./) ?? [];
    if (layer === undefined || layer >= MOST_LAYERS) continue;
    while (blocks.length <= +layer) {
      const sizes = shape.blocks?.[blocks.length];
      blocks.push({ heads: 0, mixture: false, recurrent: false, ...sizesOf(sizes), cross: sizesOf(sizes?.cross) });
    }
    if (name.endsWith(".attention.pattern")) blocks[layer].heads = arrays[name].shape[0];
    blocks[layer].mixture ||= name.endsWith(".feedforward.router");
    blocks[layer].recurrent ||= name.endsWith(".recurrent.output");
  }
  return {
    model: facts.model.name, family: facts.model.family, vocabulary: isCount(tokens) ? tokens : facts.model.vocabulary, width: isCount(width) ? width : 0,
    generates: true, chat: false, blocks, encoder: Array.isArray(shape.encoder) ? shape.encoder.slice(0, MOST_LAYERS).map(sizesOf) : [], points: Object.fromEntries(names.map((name) => [name, { shape: shapeOf(name, arrays[name].shape), about: "" }])),
    facts: sizesOf(shape.facts), ...(isGraph(shape.graph, blocks.length) && { graph: shape.graph }),
    position: ["rotary", "added", "alibi", "relative", "none"].includes(position) ? position : "unknown", slopes: Array.isArray(slopes) ? slopes.slice(0, MOST_LISTED).filter(Number.isFinite) : [],
    angles: Object.fromEntries(Object.entries(angles ?? {}).filter(([, of]) => Array.isArray(of) && of.length <= MOST_LAYERS && of.every(isCount))),
  };
}

/** The plain values among some facts: numbers, flags and names. */
function sizesOf(given) {
  if (given === null || typeof given !== "object") return {};
  return Object.fromEntries(Object.entries(given).filter(([, one]) => Number.isFinite(one) || typeof one === "boolean" || isText(one)));
}

/** The shape of a point as the server writes it, from that of its array. */
function shapeOf(name, [rows, ...sizes]) {
  if (isOfHeads(name)) return `(B, H ${rows}, T, T')`;
  return `(B, T${sizes.map((size, at) => `, ${sizes.length === 2 && !at ? "H" : sizes.length === 2 ? "K" : "D"} ${size}`).join("")})`;
}

/** Whether a file describes the operations of a model of so many blocks as the picture reads them. */
function isGraph(graph, blocks) {
  const arePoints = (list) => Array.isArray(list) && list.length <= MOST_LISTED && list.every((one) => isText(one?.name) && isText(one.kernel) && isText(one.shape) && Number.isFinite(one.bytes) && Array.isArray(one.inputs) && one.inputs.every(isText));
  return Array.isArray(graph?.kinds) && graph.kinds.every((kind) => arePoints(kind?.points)) && arePoints(graph.rest) && Array.isArray(graph.blocks)
    && graph.blocks.length >= blocks && graph.blocks.every((kind) => isCount(kind) && kind < graph.kinds.length);
}

/** An array as if all of its point had been recorded: NaN stands for what was not. Null if that is too large. */
function filled(values, part, name, tokens, source) {
  const count = isOfSource(name) ? source : tokens;
  const { first, heads, dims } = part ?? {}, { shape } = values, axis = isPattern(name) ? 1 : 0;
  const fits = (list, size) => Array.isArray(list) && list.length === size && list.every((one) => Number.isSafeInteger(one) && one >= 0 && one < MOST_PARTS);
  const places = shape.map((size, i) => {
    if (i === axis && Number.isSafeInteger(first) && first > 0 && first + size <= count) return Array.from({ length: size }, (_, at) => first + at);
    if (i === shape.length - 1 && i !== axis && fits(dims, size)) return dims;
    if (i !== axis && i === (axis ? 0 : shape.length - 2) && fits(heads, size)) return heads;
    return null;
  });
  if (places.every((one) => !one)) return values;
  const last = (list) => list.reduce((a, b) => Math.max(a, b), 0);
  const whole = shape.map((size, i) => (places[i] ? Math.max(last(places[i]), i === axis ? count - 1 : 0) + 1 : size)), size = sizeOf(name, whole, tokens, source);
  if (size === null) return null;
  const made = new Float32Array(size).fill(NaN);
  values.values.forEach((value, at) => {
    let left = at, to = 0, size = 1;
    for (let i = shape.length - 1; i >= 0; i--) {
      const index = left % shape[i];
      left = (left - index) / shape[i];
      to += (places[i] ? places[i][index] : index) * size;
      size *= whole[i];
    }
    made[to] = value;
  });
  return shaped(made, whole);
}

/** The arrays of a file that a selection names: "blocks.*.residual", "embed[dims=0:9; tokens=3]". */
export function selected({ arrays }, text) {
  const [, wanted, inside] = text.match(/^([^[]+)(?:\[(.*)\])?$/), pattern = new RegExp(`^${wanted.replace(/\./g, "\\.").replace(/\*/g, "[^.]*")}$`);
  const found = Object.keys(arrays).filter((name) => pattern.test(name));
  if (!found.length) throw new Error(`The file has not recorded ${wanted}.`);
  const parts = Object.fromEntries((inside ?? "").split(";").filter(Boolean).map((one) => one.trim().split("=")));
  return Object.fromEntries(found.map((name) => [name, part(arrays[name], axesOf(name, arrays[name].shape.length, parts))]));
}

function range(text, size) {
  if (text === undefined) return [0, size];
  const [start, stop] = text.split(":");
  return [Math.min(+start || 0, size), text.includes(":") ? Math.min(stop === "" ? size : +stop, size) : Math.min(+start + 1, size)];
}

/** What a selection says of each axis of an array: patterns and scores are (heads, tokens, keys), values (tokens, heads, dims) or (tokens, dims). */
function axesOf(name, rank, { heads, tokens, dims }) {
  if (isOfHeads(name)) return [heads, tokens];
  return rank > 2 ? [tokens, heads, dims] : [tokens, dims];
}

function part(one, axes) {
  const { shape, values } = one;
  if (shape.length < 2) return one;
  const ranges = shape.map((size, i) => range(axes[i], size)), sizes = ranges.map(([from, to]) => to - from);
  if (sizes.every((size, i) => size === shape[i])) return one;
  const made = new values.constructor(sizes.reduce((all, size) => all * size, 1));
  for (let at = 0; at < made.length; at++) {
    let left = at, from = 0, step = 1;
    for (let i = shape.length - 1; i >= 0; i--) {
      const index = left % sizes[i];
      left = (left - index) / sizes[i];
      from += (ranges[i][0] + index) * step;
      step *= shape[i];
    }
    made[at] = values[from];
  }
  return shaped(made, sizes);
}

/** The lengths of an array's rows; a file may hold the lengths themselves. */
export function lengths(one) {
  if (one.shape.length === 1) return one;
  const rows = one.shape[0], size = one.values.length / rows;
  return shaped(Float32Array.from({ length: rows }, (_, t) => Math.sqrt(one.values.subarray(t * size, (t + 1) * size).reduce((sum, x) => sum + x * x, 0))), [rows]);
}
