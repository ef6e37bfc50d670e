// attention: which tokens each head looks at: all heads beside each other, arcs over the words, and a matrix.

import { html, useLayoutEffect, useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, fitted, heat, shade, useScheme } from "/web/parts/draw.js";
import { Choose, ChooseBlock, State, Tokens, nearest } from "/web/parts/show.js";
import { percent, shown } from "/web/parts/text.js";

const SMALL = 84, LABEL = 74, MOST_LABELS = 60, MOST_SIDE = 560;
const LONG = 256, ROWS = 64; // tokens from which on whole patterns are too large to be sent; rows that come together
const MOST_WORDS = 160, WORDS_AFTER = 20, MOST_ARCS = 64, LEAST = 0.01, MOST_FAINT = 300, LEAST_FAINT = 0.25, MOST_LISTED = 8;

export const attention = {
  id: "attention",
  title: "Attention",
  about: "Each head compares a token's query with the keys of the tokens before it, and gathers their values in these proportions.",
  has: (info) => info.blocks.some((one) => one.heads),
  View,
};

function View({ look, width, at, choose, edit }) {
  const layers = look.info.blocks.map((one, layer) => (one.heads ? layer : -1)).filter((layer) => layer >= 0);
  const layer = nearest(layers, at.block);
  const heads = look.info.blocks[layer].heads, head = Math.min(at.head, heads - 1), name = `blocks.${layer}.attention.pattern`;
  const isLong = !look.recorded && look.ids.length > LONG;
  const count = look.ids.length, from = Math.floor(Math.min(at.token, Math.max(count - 1, 0)) / ROWS) * ROWS;
  // One reading answers all of it; the rows around the chosen token come with it, so that the arrow keys ask for nothing.
  const views = [{ title: "heads", point: name, pool: 2 * SMALL }, { title: "head", point: name, head, pool: MOST_SIDE }, { title: "rows", point: name, head, rows: [from, Math.min(from + ROWS, count)] }];
  const state = useTrace(look, isLong ? { views } : { points: [name] }), { arrays } = state, pattern = arrays?.[name];
  const found = isLong ? arrays && longViews(arrays, at.token, from, count) : pattern && wholeViews(pattern, head, at.token);
  const changed = look.edits.find((one) => one.point === `blocks.${layer}.attention.heads[heads=${head}]`);
  const change = (made) => edit(`blocks.${layer}.attention.heads[heads=${head}]`, made), pick = (token) => choose({ token });
  return html`<div><div class="bar">
      <${ChooseBlock} layers=${layers} value=${at.block} onChange=${(block) => choose({ block })} />
      <${Choose} label="head" value=${head} most=${heads - 1} onChange=${(one) => choose({ head: one })} />
      ${edit && html`<span class="choose">
        <button type="button" aria-pressed=${changed?.edit === "ablate"} onClick=${() => change(changed?.edit === "ablate" ? null : { edit: "ablate" })}>ablate this head</button>
        <button type="button" aria-pressed=${changed?.edit === "scale"} onClick=${() => change(changed?.edit === "scale" ? null : { edit: "scale", factor: 3 })}>times 3</button>
      </span>`}
    </div>
    <${State} state=${state}>${found && html`
      <${Heads} pattern=${found.heads} chosen=${head} onChoose=${(head) => choose({ head })} block=${layer} />
      <${Looks} row=${found.row} faint=${found.count <= MOST_WORDS ? found.matrix.values : null} pieces=${look.pieces} token=${found.token} width=${width} onPick=${pick} />
      <${Matrix} pattern=${found.matrix} count=${found.count} pieces=${look.pieces} width=${width} token=${found.token} onPick=${pick} label=${`block ${layer}, head ${head}`} />`}<//></div>`;
}

/** What is shown of a pattern (H, T, T): all heads, one as a matrix, and the row of a token. */
function wholeViews(pattern, head, wanted) {
  const [, count, columns] = pattern.shape, token = Math.min(wanted, count - 1), values = pattern.row(head);
  return { heads: pattern, matrix: { shape: [1, count, columns], values }, row: values.subarray(token * columns, (token + 1) * columns), count, token };
}

/** The same of views that the server has made; the first of its rows is that of token `from`. */
function longViews({ heads, head, rows }, wanted, from, count) {
  const token = Math.min(wanted, count - 1);
  return { heads, matrix: head, row: rows.row(0, token - from), count, token };
}

/** Shades of weights: of their roots, because most weights of a long text are small. */
function shades() {
  const of = shade("paper", "accent");
  return (weight) => of(Math.sqrt(weight));
}

function Heads({ pattern, chosen, onChoose, block }) {
  const [heads, rows, columns] = pattern.shape;
  return html`<div class="smalls" role="group" aria-label=${`all heads of block ${block}`}>${Array.from({ length: heads }, (_, head) => html`
    <button type="button" key=${head} aria-pressed=${head === chosen} aria-label=${`head ${head}`} onClick=${() => onChoose(head)}>
      <${Picture} width=${SMALL} height=${SMALL} label="" of=${[pattern, head]}
        paint=${(context, w, h) => heat(context, pattern.row(head), rows, columns, [0, 0, w, h], shades())} />
      <span>${head}</span></button>`)}</div>`;
}

/** A pattern of `count` tokens. It may have fewer rows: then each is the maximum of several tokens. */
function Matrix({ pattern, count, pieces, width, token, onPick, label }) {
  const [, rows, columns] = pattern.shape, { values } = pattern, each = Math.ceil(count / rows);
  const room = Math.min(width - LABEL, MOST_SIDE), named = count <= MOST_LABELS && Math.max(room, 120) / count > 9;
  const left = named ? LABEL : 0, side = Math.max(named ? room : Math.min(width, MOST_SIDE), 120), height = side * (rows > 1 ? 1 : 0.2), cell = height / rows;
  const paint = (context) => {
    heat(context, values, rows, columns, [left, 0, side, height], shades());
    context.strokeStyle = colour("warm");
    context.strokeRect(left + 0.5, Math.floor(token / each) * cell + 0.5, side - 1, Math.max(cell, 2) - 1);
    if (!named) return;
    context.fillStyle = colour("ink");
    for (let r = 0; r < rows; r++) context.fillText(fitted(context, shown(pieces[r] ?? ""), LABEL - 6), 0, r * cell + cell / 2 + 4);
  };
  const spoken = (at) => {
    const first = at * each, last = Math.min(first + each, count) - 1;
    return each === 1 ? shown(pieces[first] ?? "") : `tokens ${first} to ${last}`;
  };
  const at = (x, y) => {
    const r = Math.floor(y / cell), c = Math.floor((x - left) / (side / columns));
    return r >= 0 && r < rows && c >= 0 && c < columns ? `${spoken(r)} looks at ${spoken(c)}: ${each > 1 ? "at most " : ""}${percent(values[r * columns + c])}` : "";
  };
  return html`<${Picture} width=${left + side} height=${height} paint=${paint} at=${at} of=${[values, token, width]}
    onPick=${(x, y) => { const r = Math.floor(y / cell); if (r >= 0 && r < rows) onPick(Math.min(r * each, count - 1)); }}
    slider=${{ value: token, most: count - 1, text: `token ${token}, ${shown(pieces[token] ?? "")}`, onChange: onPick }}
    label=${`attention pattern of ${label}: ${count} tokens look at those before them`} />`;
}

/** What a token looks at: arcs over the words, and the strongest as a list. `faint` is the pattern of all tokens. */
function Looks({ row, faint, pieces, token, width, onPick }) {
  const first = row.length <= MOST_WORDS ? 0 : Math.max(0, Math.min(token - MOST_WORDS + WORDS_AFTER, row.length - MOST_WORDS));
  const some = pieces.slice(first, Math.min(row.length, first + MOST_WORDS)), box = useRef(null), canvas = useRef(null), scheme = useScheme();
  useLayoutEffect(() => {
    const words = [...box.current.querySelectorAll(".token")].map((one) => ({ x: one.offsetLeft + one.offsetWidth / 2, top: one.offsetTop, bottom: one.offsetTop + one.offsetHeight }));
    const scale = devicePixelRatio || 1, one = canvas.current, high = box.current.scrollHeight, wide = box.current.clientWidth;
    Object.assign(one, { width: Math.round(wide * scale), height: Math.round(high * scale) });
    Object.assign(one.style, { width: `${wide}px`, height: `${high}px` });
    const context = one.getContext("2d");
    context.scale(scale, scale);
    context.strokeStyle = colour("soft");
    if (faint) arcs(context, words, strongest(faint, MOST_FAINT, LEAST_FAINT).map(([at, p]) => [Math.floor(at / row.length), at % row.length, p]), 0.35);
    context.strokeStyle = colour("accent");
    arcs(context, words, strongest(row.subarray(first, first + MOST_WORDS), MOST_ARCS, LEAST).map(([at, p]) => [token - first, at, p]), 1);
  }, [row, faint, token, width, scheme, first]);
  return html`<div><h4>What ${shown(pieces[token] ?? "")} looks at</h4>
    ${row.length > MOST_WORDS && html`<p class="note">Tokens ${first} to ${first + some.length - 1} of ${row.length.toLocaleString()}.</p>`}
    <div class="arcs" ref=${box}><canvas ref=${canvas} aria-hidden="true"></canvas><${Tokens} pieces=${some} first=${first} chosen=${token} onChoose=${onPick} label="token that looks" /></div>
    <ol class="near">${strongest(row, MOST_LISTED, 0).map(([at, p]) => html`<li key=${at}><span class="id">${at}</span> <span class="piece">${shown(pieces[at] ?? "")}</span> <span class="num">${percent(p)}</span></li>`)}</ol></div>`;
}

/** The largest of some numbers above `least`: [place, number], the largest first. */
function strongest(values, most, least) {
  const found = [];
  values.forEach((value, at) => value > least && found.push([at, value]));
  return found.sort((a, b) => b[1] - a[1]).slice(0, most);
}

/** Arcs from words to words, [from, to, weight]; those on one line rise above it, others lead from line to line. */
function arcs(context, words, all, strength) {
  for (const [from, to, weight] of all) {
    const a = words[from], b = words[to];
    if (!a || !b) continue;
    context.globalAlpha = strength * (0.2 + 0.8 * weight);
    context.lineWidth = 1 + 4 * weight;
    context.beginPath();
    if (from === to) context.arc(a.x, a.top - 4, 4, 0, 7);
    else if (a.top === b.top) {
      const rise = Math.min(26, 8 + Math.abs(a.x - b.x) / 12);
      context.moveTo(a.x, a.top);
      context.bezierCurveTo(a.x, a.top - rise, b.x, b.top - rise, b.x, b.top);
    } else {
      const [upper, lower] = a.top < b.top ? [a, b] : [b, a], bend = Math.min(40, (lower.top - upper.bottom) / 2 + 6);
      context.moveTo(lower.x, lower.top);
      context.bezierCurveTo(lower.x, lower.top - bend, upper.x, upper.bottom + bend, upper.x, upper.bottom);
    }
    context.stroke();
  }
  context.globalAlpha = 1;
}
