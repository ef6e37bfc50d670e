// All heads of all blocks, each as a small pattern: a row of it is a token that reads, a column is a token that it reads.

import { html, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, heat, shade } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { counted, percent, shown } from "/web/parts/text.js";

const MOST_TOKENS = 64, LEAST = 26, MOST = 64, GAP = 3, LEFT = 34, TOP = 20; // tokens of a pattern; pixels of a pattern, between patterns, and of the numbers beside them
const ORDERS = [["blocks", "in order"], ["specific", "most specific first"], ["first", "without heads that rest on the first token"]];

/** The tokens of the text that the patterns show: at most 64, with the chosen token among them. */
function windowOf(count, token) {
  const first = Math.max(0, Math.min(token - MOST_TOKENS + 8, count - MOST_TOKENS));
  return [first, Math.min(count, first + MOST_TOKENS)];
}

/** Each head as {layer, head, values (T·T), key, score, first}: what the chosen token reads more than other tokens do, and the share that it takes from the first token. */
function headsOf(look, arrays, [first, end], token) {
  const size = end - first, own = token - first;
  return look.info.blocks.flatMap((block, layer) => {
    const all = arrays[`blocks.${layer}.attention.pattern`];
    if (!all) return [];
    const isWhole = all.shape[1] > size || all.shape[2] > size;
    return Array.from({ length: all.shape[0] }, (_, head) => {
      const values = new Float32Array(size * size), sums = new Float64Array(size), counts = new Float64Array(size);
      for (let t = 0; t < size; t++) {
        const row = all.row(head, isWhole ? t + first : t), part = isWhole ? row.subarray(first, end) : row;
        values.set(part, t * size);
        if (t === own || t + first === 0) continue;
        part.forEach((weight, key) => {
          if (key === t || !(weight > 0)) return;
          sums[key] += weight;
          counts[key] += 1;
        });
      }
      let [key, score] = [own, -1];
      for (let one = 0; one < size; one++) {
        const more = values[own * size + one] - (counts[one] ? sums[one] / counts[one] : 0);
        if (one !== own && more > score) [key, score] = [one, more];
      }
      return { layer, head, values, key: key + first, score, weight: values[own * size + key], first: first === 0 ? values[own * size] : 0 };
    });
  });
}

export function AllHeads({ look, at, choose, labels, width }) {
  const { info } = look, count = look.ids.length, range = windowOf(count, at.token), [first, end] = range, [order, setOrder] = useState("blocks");
  const selection = look.recorded ? "" : `[tokens=${first}:${end}; keys=${first}:${end}]`, state = useTrace(look, count ? { points: [`blocks.*.attention.pattern${selection}`] } : {});
  const heads = useMemo(() => (state.arrays ? headsOf(look, state.arrays, range, at.token) : []), [state.arrays, first, end, at.token]);
  const inOrder = useMemo(() => (order === "blocks" ? heads : [...heads].filter((one) => order === "specific" || one.first < 0.5).sort((a, b) => b.score - a.score)), [heads, order]);
  const label = shown(labels[at.token] ?? "");
  return html`<div class="all-heads"><p class="note">${counted(heads.length || info.blocks.reduce((sum, one) => sum + (one.heads ?? 0), 0))} heads. In each square a row is a token that reads, and a column a token that it reads; the frame is the chosen head.${end - first < count ? ` Tokens ${first} to ${end - 1} of ${counted(count)}.` : ""}</p>
    <span class="measures" role="group" aria-label="order of the heads">${ORDERS.map(([id, title]) => html`<button type="button" key=${id} aria-pressed=${order === id} onClick=${() => setOrder(id)}>${title}</button>`)}</span>
    <${State} state=${state}>${heads.length > 0 && html`<${Squares} heads=${inOrder} isGrid=${order === "blocks"} size=${end - first} at=${at} choose=${choose} width=${width} name=${(t) => shown(labels[t] ?? "")} label=${label} blocks=${info.blocks.length} />`}<//></div>`;
}

function Squares({ heads, isGrid: wants, size, at, choose, width, name, label, blocks }) {
  const rows = Math.max(1, ...heads.map((one) => one.head + 1)), wide = (width - LEFT) / blocks, isGrid = wants && wide >= LEAST, each = Math.min(MOST, isGrid ? wide : Math.max(LEAST + 12, Math.min(MOST, Math.sqrt((width * 420) / Math.max(1, heads.length)))));
  const across = isGrid ? blocks : Math.max(1, Math.floor(width / each)), [left, top] = isGrid ? [LEFT, TOP] : [0, 0], cell = (one, n) => (isGrid ? [one.layer, one.head] : [n % across, Math.floor(n / across)]);
  const tall = isGrid ? rows : Math.ceil(heads.length / across), chosen = heads.findIndex((one) => one.layer === at.block && one.head === at.head);
  const paint = (context) => {
    const of = shade("paper", "attention"), root = (weight) => of(Math.sqrt(weight));
    heads.forEach((one, n) => {
      const [x, y] = cell(one, n), box = [left + x * each, top + y * each, each - GAP, each - GAP];
      heat(context, one.values, size, size, box, root);
      context.strokeStyle = colour(n === chosen ? "accent" : "line");
      context.lineWidth = n === chosen ? 3 : 1;
      context.strokeRect(box[0] - 0.5, box[1] - 0.5, box[2] + 1, box[3] + 1);
    });
    if (!isGrid) return;
    context.fillStyle = colour("faint");
    for (let layer = 0; layer < blocks; layer++) context.fillText(String(layer), left + layer * each + 1, top - 6);
    for (let head = 0; head < rows; head++) context.fillText(String(head), 12, top + (head + 0.5) * each + 3);
  };
  const find = (x, y) => {
    const [column, row] = [Math.floor((x - left) / each), Math.floor((y - top) / each)];
    return column < 0 || column >= across || row < 0 ? undefined : isGrid ? heads.find((one) => one.layer === column && one.head === row) : heads[row * across + column];
  };
  const said = (one) => (one ? `block ${one.layer}, head ${one.head}: ${label} takes ${percent(one.weight)} from ${name(one.key)}, ${percent(Math.max(0, one.score))} more than other tokens do` : "");
  const pick = (one) => one && choose({ block: one.layer, head: one.head, key: one.key, point: `blocks.${one.layer}.attention.pattern`, dim: -1 });
  return html`<${Picture} width=${left + across * each} height=${top + tall * each + GAP} paint=${paint} of=${[heads, size, each, across, chosen]} at=${(x, y) => said(find(x, y))} onPick=${(x, y) => pick(find(x, y))} label="patterns of all heads"
    slider=${{ value: Math.max(0, chosen), most: heads.length - 1, text: said(heads[chosen]), onChange: (to) => pick(heads[to]) }} />`;
}
