// A recorded run: a safetensors file that pellucid wrote (trace/recorded.py), read here without a server's help.

import { shaped } from "/web/api.js";
import { Tree } from "/web/tree.js";

const KEY = "pellucid.run", VERSION = 1, MOST_HEADER = 100 << 20;
const KINDS = { F32: Float32Array, I32: Int32Array };

/** Read a file. Throws an Error whose message says what is wrong. */
export async function openRun(file) {
  const bytes = await file.arrayBuffer();
  if (bytes.byteLength < 8) throw new Error(`${file.name} is no recorded run: it is too short`);
  const size = Number(new DataView(bytes).getBigUint64(0, true));
  if (size > MOST_HEADER || 8 + size > bytes.byteLength) throw new Error(`${file.name} is no recorded run: its header does not fit`);
  let header, facts;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.slice(8, 8 + size)));
    facts = JSON.parse(header.__metadata__[KEY]);
  } catch {
    throw new Error(`${file.name} is no recorded run of Pellucid`);
  }
  if (facts.version !== VERSION) throw new Error(`${file.name} has version ${facts.version}; this page reads ${VERSION}`);
  const arrays = {};
  for (const [name, one] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [start, stop] = one.data_offsets, Kind = KINDS[one.dtype], count = one.shape.reduce((a, b) => a * b, 1);
    if (!Kind || stop - start !== 4 * count || 8 + size + stop > bytes.byteLength) throw new Error(`${file.name}: the array ${name} is damaged`);
    arrays[name] = shaped(new Kind(bytes.slice(8 + size + start, 8 + size + stop)), one.shape);
  }
  return { name: file.name, facts, arrays };
}

/** The text of a run as the page has texts: its prompt, and its tokens as a tree with one branch. */
export function textOf({ facts, arrays }) {
  const tree = new Tree(), count = facts.prompt.length;
  let leaf = 0;
  facts.ids.forEach((token, i) => {
    const probability = arrays["sample.probability"]?.values[i] ?? NaN, piece = facts.pieces[count + i];
    leaf = tree.add(leaf, { token, piece, text: piece, probability, alternatives: [] }).id;
  });
  return { prompt: facts.prompt, pieces: facts.pieces.slice(0, count), tree, leaf, text: "" };
}

/** What the page must know of the model, as far as the file tells. */
export function infoOf({ facts, arrays }) {
  const names = Object.keys(arrays), blocks = [];
  for (const name of names) {
    const [, layer] = name.match(/^blocks\.(\d+)\./) ?? [];
    if (layer === undefined) continue;
    while (blocks.length <= +layer) blocks.push({ heads: 0, mixture: false, recurrent: false });
    if (name.endsWith(".attention.pattern")) blocks[layer].heads = arrays[name].shape[0];
    blocks[layer].mixture ||= name.endsWith(".feedforward.router");
    blocks[layer].recurrent ||= name.endsWith(".recurrent.output");
  }
  const wide = names.find((name) => name === "embed" || name.endsWith(".residual"));
  return {
    model: facts.model.name, family: facts.model.family, vocabulary: facts.model.vocabulary, width: wide ? arrays[wide].shape.at(-1) : 0,
    generates: true, chat: false, blocks, points: Object.fromEntries(names.map((name) => [name, {}])),
    position: names.some((name) => name.startsWith("position.angles")) ? "rotary" : names.includes("position") ? "added" : "none",
  };
}

/** The arrays of a file that a selection names: "blocks.*.residual", "embed[dims=0:9; tokens=3]". */
export function selected(arrays, text) {
  const [, wanted, inside] = text.match(/^([^[]+)(?:\[(.*)\])?$/), pattern = new RegExp(`^${wanted.replace(/\./g, "\\.").replace(/\*/g, "[^.]*")}$`);
  const found = Object.keys(arrays).filter((name) => pattern.test(name));
  if (!found.length) throw new Error(`The file has not recorded ${wanted}.`);
  const parts = Object.fromEntries((inside ?? "").split(";").filter(Boolean).map((one) => one.trim().split("=")));
  return Object.fromEntries(found.map((name) => [name, part(arrays[name], range(parts.tokens, arrays[name].shape[0]), range(parts.dims, arrays[name].shape.at(-1)))]));
}

function range(text, size) {
  if (text === undefined) return [0, size];
  const [start, stop] = text.split(":");
  return [Math.min(+start || 0, size), text.includes(":") ? Math.min(stop === "" ? size : +stop, size) : Math.min(+start + 1, size)];
}

function part(one, [first, last], [low, high]) {
  const width = one.shape.at(-1);
  if (first === 0 && last === one.shape[0] && low === 0 && high === width) return one;
  const parts = one.shape.slice(1, -1).reduce((a, b) => a * b, 1), size = high - low, made = new one.values.constructor((last - first) * parts * size);
  for (let t = first; t < last; t++) {
    const row = one.row(t);
    for (let p = 0; p < parts; p++) made.set(row.subarray(p * width + low, p * width + high), ((t - first) * parts + p) * size);
  }
  return shaped(made, [last - first, ...one.shape.slice(1, -1), size]);
}

/** The lengths of an array's rows. */
export function lengths(one) {
  const rows = one.shape[0], size = one.values.length / rows;
  return shaped(Float32Array.from({ length: rows }, (_, t) => Math.sqrt(one.values.subarray(t * size, (t + 1) * size).reduce((sum, x) => sum + x * x, 0))), [rows]);
}
