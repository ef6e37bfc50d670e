// Where nodes are: a column for each token, a row for each layer, from the embeddings at the bottom to the logits at the top.

import { EMBEDDINGS, LOGITS } from "/web/graph/read.js";
import { GRAPH } from "/web/words/graph.js";

export const LEFT = 80;
const RIGHT = 8, TOP = 16, SPACE = 12, COLUMN = [34, 300], MOST_WIDTH = 6000, HEIGHT = 560, ROW = [17, 44], MOST_ROWS = 120;
const LETTER = 6.6, TURNED = 62, LEVEL = 20; // pixels of a letter, and of the labels of tokens below each other and beside each other

/**
 * {width, height, x, y, rows, columns, isTurned} of shown nodes in a width. `rows` are {label, y, height}, `columns` {left, width};
 * `isTurned` says that the labels of tokens need more room than the columns have.
 */
export function layoutOf({ nodes }, tokens, room, names) {
  const rows = rowsOf(nodes), row = new Map(rows.map((layer, at) => [layer, at])), cells = new Map(), most = new Int32Array(tokens.length);
  nodes.forEach((one, at) => {
    const key = row.get(one.layer) * tokens.length + one.column, cell = cells.get(key) ?? cells.set(key, []).get(key);
    cell.push(at);
    most[one.column] = Math.max(most[one.column], cell.length);
  });
  const columns = columnsOf(most, room - LEFT - RIGHT), tall = Math.max(ROW[0], Math.min(ROW[1], HEIGHT / rows.length)), x = new Float64Array(nodes.length), y = new Float64Array(nodes.length);
  for (const [key, cell] of cells) {
    const { left, width } = columns[key % tokens.length], space = Math.min(SPACE, Math.max(width - 10, 1) / cell.length), middle = TOP + (rows.length - 1 - Math.floor(key / tokens.length) + 0.5) * tall;
    cell.sort((a, b) => (nodes[a].influence ?? 2) - (nodes[b].influence ?? 2) || a - b).forEach((at, i) => {
      x[at] = left + width / 2 + (i - (cell.length - 1) / 2) * space;
      y[at] = middle;
    });
  }
  const isTurned = columns.some(({ width }, at) => names[at].length * LETTER > width - 4), bottom = TOP + rows.length * tall;
  return {
    x, y, columns, isTurned, bottom, width: columns.length ? columns.at(-1).left + columns.at(-1).width + RIGHT : room, height: bottom + (isTurned ? TURNED : LEVEL),
    rows: rows.map((layer, at) => ({ label: labelOf(layer), y: TOP + (rows.length - 1 - at) * tall, height: tall })),
  };
}

/** The layers from the bottom: all that lie between, or in a very deep graph those that have nodes. */
function rowsOf(nodes) {
  const own = [...new Set(nodes.map((one) => one.layer))].sort((a, b) => a - b), inner = own.filter((one) => one !== EMBEDDINGS && one !== LOGITS);
  if (!inner.length || inner.at(-1) - inner[0] >= MOST_ROWS) return own;
  const all = Array.from({ length: inner.at(-1) + 1 }, (_, layer) => layer);
  return [...(own[0] === EMBEDDINGS ? [EMBEDDINGS] : []), ...(all.length <= MOST_ROWS ? all : inner), ...(own.at(-1) === LOGITS ? [LOGITS] : [])];
}

function labelOf(layer) {
  return layer === EMBEDDINGS ? GRAPH.embed : layer === LOGITS ? GRAPH.logits : GRAPH.layer(layer);
}

/** The layer of a node in words. */
export function layerOf(node) {
  return labelOf(node.layer);
}

/** Columns as wide as their fullest cell needs; the rest of the room is divided equally. */
function columnsOf(most, room) {
  const wide = Array.from(most, (count) => Math.max(COLUMN[0], Math.min(COLUMN[1], count * SPACE + 14))), sum = wide.reduce((a, b) => a + b, 0);
  const more = Math.max(0, room - sum) / wide.length, scale = Math.min(1, MOST_WIDTH / sum);
  let left = LEFT;
  return wide.map((one) => {
    const column = { left, width: (one + more) * scale };
    left += column.width;
    return column;
  });
}

/** The node that a key leads to from a node: beside it in its row, or the nearest in the next row that has nodes, of two the left one. */
export function neighbour({ x, y }, at, key) {
  const away = { ArrowLeft: -1, ArrowRight: 1 }[key];
  let best = -1, least = Infinity;
  for (let other = 0; other < x.length; other++) {
    if (other === at) continue;
    const across = x[other] - x[at], up = y[at] - y[other], isSame = Math.abs(up) < 1;
    const far = away ? (isSame && across * away > 0 ? Math.abs(across) : Infinity)
      : !isSame && (key === "ArrowUp" ? up > 0 : up < 0) ? Math.abs(up) * 1e4 + Math.abs(across) + (across > 0 ? 0.1 : 0) : Infinity;
    if (far < least) [best, least] = [other, far];
  }
  return best;
}
