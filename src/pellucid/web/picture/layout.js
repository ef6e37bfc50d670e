// Where the parts of the picture are: columns from the text to the drawn token, and the rows that there is room for.

/** Ids of the columns before the block and after it. The columns of a block follow from the block's parts. */
const TITLES = {
  text: "text", tokens: "tokens", embed: "embedding", position: "position", norm: "norm", qkv: "Q K V", pattern: "pattern",
  state: "state", source: "source", neurons: "feed-forward", experts: "experts", add: "⊕", logits: "logits", softmax: "softmax", draw: "draw",
  pooled: "vector", labels: "labels", slice: "",
};
// [least width, share of the width that is left], in pixels of a text of 13.
const WIDTHS = {
  text: [78, 0.9], tokens: [56, 0.2], embed: [78, 1], position: [54, 0.2], norm: [36, 0.1], qkv: [52, 0.3], pattern: [92, 2],
  state: [92, 1], source: [86, 0.9], neurons: [88, 1], experts: [110, 1.2], add: [30, 0.2], logits: [112, 0.8], softmax: [112, 0.9], draw: [62, 0.2],
  pooled: [130, 1], labels: [190, 1.4], slice: [3, 0.4],
};
export const PANELS = {
  text: "tokens", tokens: "tokens", embed: "embeddings", position: "positions", norm: "blocks", qkv: "attention", pattern: "attention",
  state: "recurrent", source: "source", neurons: "feedforward", experts: "experts", add: "blocks", logits: "lens", softmax: "sampling", draw: "sampling",
  pooled: "embeddings", labels: "blocks",
};
export const ROW = 28, UNIT = 13, NARROW = 900;

export const PARTS = ["attention", "recurrent", "cross", "feedforward"];
const known = new WeakMap(); // the parts of a model's blocks

/** What a block consists of, in order: some of `PARTS`. "cross" is the attention of an encoder-decoder to the source. */
export function partsOf(info, layer) {
  let blocks = known.get(info);
  if (!blocks) {
    const found = {};
    for (const name of Object.keys(info.points)) {
      const [, block, part] = name.match(/^blocks\.(\d+)\.([^.]+)\./) ?? [];
      if (PARTS.includes(part)) (found[block] ??= new Set()).add(part);
    }
    blocks = info.blocks.map((_, at) => PARTS.filter((part) => found[at]?.has(part)));
    known.set(info, blocks);
  }
  return blocks[layer] ?? [];
}

const added = new WeakMap(); // points by block and part

/** The point of what a part of a block adds to the residual stream: after its own norm, if it has one. */
export function addedPoint(info, layer, part) {
  let names = added.get(info);
  if (!names) added.set(info, (names = new Map()));
  const key = layer * PARTS.length + PARTS.indexOf(part);
  if (!names.has(key)) names.set(key, [`blocks.${layer}.${part}.post_norm`, `blocks.${layer}.${part}.output`].find((name) => name in info.points));
  return names.get(key);
}

/** Whether the norm of a part is of the residual stream after the part, as in BERT. */
function isNormAfter(info, layer, part) {
  const order = Object.keys(info.points), at = (name) => order.indexOf(`blocks.${layer}.${part}.${name}`);
  return at("output") >= 0 && at("norm") > at("output");
}

/** The points of the residual stream inside a block: after each of its parts but the last. */
export function jointsOf(info, layer) {
  return partsOf(info, layer).slice(0, -1).map((part) => `blocks.${layer}.${part}.${isNormAfter(info, layer, part) ? "norm" : "residual"}`);
}

const ALL = /^blocks\.(\d+|\*)\.(\w+)\.(?:heads(?:\[heads=([\d,:]+)\])?|output)$/; // what a head adds, at all tokens

/** Whether changes take away what a head adds: what it looks at has no effect then. */
export function isHeadOut(edits, layer, part, head) {
  const has = (list) => list.split(",").map((one) => one.split(":")).some(([from, to]) => (to === undefined ? +from === head : head >= +from && (to === "" || head < +to)));
  return edits.some(({ edit, point, factor }) => {
    const [found, block, own, heads] = point.match(ALL) ?? [], isGone = edit === "ablate" || edit === "replace" || (edit === "scale" && factor === 0);
    return found && isGone && own === part && (block === "*" || +block === layer) && (heads === undefined || has(heads));
  });
}

/** The selection of the first components of a point: at most `most`. */
export function firstDims(info, name, most) {
  return `dims=0:${Math.min(most, +(info.points[name].shape?.match(/(\d+)\)$/)?.[1] ?? most))}`;
}

/** Whether a model fills in masks: it has a score for each token of the vocabulary, and draws none. */
export const fills = (info) => info.task === "fill";

/** The first column after the blocks: scores of tokens, scores of labels, or a vector. */
export function outputColumn(info) {
  return info.generates || fills(info) ? "logits" : info.output?.labels ? "labels" : "pooled";
}

/** The columns of a block. Where the norms stand follows from the order of the points. */
function blockColumns(info, layer) {
  const block = info.blocks[layer] ?? {}, order = Object.keys(info.points), columns = [], at = (name) => order.indexOf(`blocks.${layer}.${name}`);
  for (const part of partsOf(info, layer)) {
    const column = (id, key = id) => columns.push({ id, key: `${part}.${key}`, part }), isAfter = isNormAfter(info, layer, part);
    if (at(`${part}.norm`) >= 0 && !isAfter) column("norm");
    if (part === "attention") ["qkv", "pattern"].forEach((id) => column(id));
    if (part === "recurrent") column("state");
    if (part === "cross") column("source");
    if (part === "feedforward") column(block.mixture ? "experts" : "neurons");
    if (at(`${part}.post_norm`) >= 0) column("norm", "post_norm");
    column("add");
    if (isAfter) column("norm");
  }
  return columns;
}

/** The blocks beside the unfolded block `layer`, each a thin slice. */
function slicesOf(info, from, to) {
  return Array.from({ length: Math.max(0, to - from) }, (_, i) => ({ id: "slice", key: `slice${from + i}`, part: "", layer: from + i }));
}

/**
 * The sections of the picture, each a list of columns {id, key, title, x, width, part}: one of all columns where there is
 * room, or one below the other in the same order. In one section all blocks are drawn: the block `layer` as a lens with its columns, the others as slices.
 */
export function sections(info, layer, width) {
  const plain = (ids) => ids.map((id) => ({ id, key: id, part: "" }));
  const before = plain(["text", "tokens", ...("embed" in info.points ? ["embed"] : []), "position"]), inside = blockColumns(info, layer);
  const after = plain(info.generates ? ["logits", "softmax", "draw"] : fills(info) ? ["logits", "softmax"] : [outputColumn(info)]);
  const isNarrow = width < NARROW;
  const groups = isNarrow ? [before, ...splitByPart(inside), after] : [[...before, ...slicesOf(info, 0, layer), ...inside, ...slicesOf(info, layer + 1, info.blocks.length), ...after]];
  return groups.map((columns, at) => ({
    columns: placed(isNarrow && at > 0 && at < groups.length - 1 ? [{ id: "text", key: `text${at}`, part: "" }, ...columns] : columns, width),
    block: columns.some((one) => one.part), first: at === 0, last: at === groups.length - 1, isNarrow,
  }));
}

function splitByPart(columns) {
  const parts = [];
  for (const one of columns) {
    if (!parts.length || parts.at(-1)[0].part !== one.part) parts.push([]);
    parts.at(-1).push(one);
  }
  return parts;
}

const EDGE = 14; // around the box of the block

function placed(columns, width) {
  const least = columns.map((one) => WIDTHS[one.id][0]), shares = columns.map((one) => WIDTHS[one.id][1]);
  const borders = columns.some((one) => one.part) ? 2 * EDGE : 0, sum = (all) => all.reduce((a, b) => a + b, 0);
  const room = width - borders - 4, free = Math.max(0, room - sum(least)), share = sum(shares) || 1, squeeze = Math.min(1, room / sum(least));
  let x = 2, wasInside = false; // the edge of a chosen row has room
  return columns.map((one, i) => {
    if (!!one.part !== wasInside) x += EDGE;
    wasInside = !!one.part;
    const mine = least[i] * squeeze + (free * shares[i]) / share, placedAt = { ...one, title: TITLES[one.id], x, width: mine };
    x += mine;
    return placedAt;
  });
}

/**
 * The rows of a text of `count` tokens, of which `room` fit: {t} for a token, {from, to} for tokens that are folded. The
 * selected token is among them.
 */
export function rowsOf(count, room, selected) {
  if (count <= room) return Array.from({ length: count }, (_, t) => ({ t }));
  const inside = Math.max(1, room - 2), first = Math.max(0, Math.min(count - inside, selected - Math.floor(inside * 0.7)));
  const rows = [];
  if (first > 0) rows.push({ from: 0, to: first });
  for (let t = first; t < Math.min(count, first + inside); t++) rows.push({ t });
  if (first + inside < count) rows.push({ from: first + inside, to: count });
  return rows;
}
