// Attention patterns: all heads small, one head large, and arcs from a token to those that it looks at.

import { html, useLayoutEffect, useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Picture, colour, fitted, heat, shade, useScheme } from "/web/parts/draw.js";
import { Tokens } from "/web/parts/show.js";
import { counted, percent, shown } from "/web/parts/text.js";

const SMALL = 84, LABEL = 74, MOST_LABELS = 60, MOST_SIDE = 480, MOST_CELL = 40;
/** Tokens of a text below arcs, at most. */
export const MOST_WORDS = 160;
const WORDS_AFTER = 20, MOST_ARCS = 64, LEAST = 0.01, MOST_FAINT = 300, LEAST_FAINT = 0.25, MOST_LISTED = 8;

/** Shades of weights: of their roots, because most weights of a long text are small. */
function shades() {
  const of = shade("paper", "attention");
  return (weight) => of(Math.sqrt(weight));
}

/** The patterns of all heads of a block, to choose one. */
export function Heads({ pattern, chosen, onChoose, block }) {
  const [heads, rows, columns] = pattern.shape;
  return html`<div class="smalls" role="group" aria-label=${block === undefined ? "all heads" : `all heads of block ${block}`}>${Array.from({ length: heads }, (_, head) => html`
    <button type="button" key=${head} aria-pressed=${head === chosen} aria-label=${`head ${head}`} onClick=${() => onChoose(head)}>
      <${Picture} width=${SMALL} height=${SMALL} label="" of=${[pattern, head]}
        paint=${(context, w, h) => heat(context, pattern.row(head), rows, columns, [0, 0, w, h], shades())} />
      <span>${head}</span></button>`)}</div>`;
}

/** A pattern of `count` tokens. It may have fewer rows: then each is the maximum of several tokens. */
export function Matrix({ pattern, count, pieces, width, token, onPick, label }) {
  const [, rows, columns] = pattern.shape, { values } = pattern, each = Math.ceil(count / rows);
  const room = Math.min(width - LABEL, MOST_SIDE, count * MOST_CELL), named = count <= MOST_LABELS && Math.max(room, 120) / count > 9;
  const left = named ? LABEL : 0, side = Math.max(named ? room : Math.min(width, MOST_SIDE), 120), height = side * (rows > 1 ? 1 : 0.2), cell = height / rows;
  const paint = (context) => {
    heat(context, values, rows, columns, [left, 0, side, height], shades());
    context.strokeStyle = colour("accent");
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
  return html`<div><p class="note">Row: the token that looks. Column: the token that it looks at.</p><${Picture} width=${left + side} height=${height} paint=${paint} at=${at} of=${[values, token, width]}
    onPick=${(x, y) => { const r = Math.floor(y / cell); if (r >= 0 && r < rows) onPick(Math.min(r * each, count - 1)); }}
    slider=${{ value: token, most: count - 1, text: `token ${token}, ${shown(pieces[token] ?? "")}`, onChange: onPick }}
    label=${`attention pattern of ${label}: each of ${count} tokens is a row, the tokens that it looks at are columns`} /></div>`;
}

/** What a token looks at in one head, or in several: arcs over the words, which `pick` the key. `faint` is the pattern of all tokens. Weights without an effect have no arcs. */
export function Looks({ row, faint, pieces, token, wanted, width, where, note, pick, hasNoEffect = false }) {
  const first = row.length <= MOST_WORDS ? 0 : Math.max(0, Math.min(token - MOST_WORDS + WORDS_AFTER, row.length - MOST_WORDS));
  const some = pieces.slice(first, Math.min(row.length, first + MOST_WORDS)), box = useRef(null), canvas = useRef(null), scheme = useScheme();
  useLayoutEffect(() => {
    const words = [...box.current.querySelectorAll(".token")].map((one) => ({ x: one.offsetLeft + one.offsetWidth / 2, left: one.offsetLeft,
      wide: one.offsetWidth, top: one.offsetTop, bottom: one.offsetTop + one.offsetHeight }));
    const scale = devicePixelRatio || 1, one = canvas.current, high = box.current.scrollHeight, wide = box.current.clientWidth, own = words[token - first];
    Object.assign(one, { width: Math.round(wide * scale), height: Math.round(high * scale) });
    Object.assign(one.style, { width: `${wide}px`, height: `${high}px` });
    const context = one.getContext("2d");
    context.scale(scale, scale);
    context.strokeStyle = colour("stream");
    if (faint && !hasNoEffect) arcs(context, words, strongest(faint, MOST_FAINT, LEAST_FAINT).map(([at, p]) => [Math.floor(at / row.length), at % row.length, p]), 0.35);
    context.strokeStyle = colour("attention");
    if (!hasNoEffect) arcs(context, words, strongest(row.subarray(first, first + MOST_WORDS), MOST_ARCS, LEAST).map(([at, p]) => [token - first, at, p]), 1);
    context.fillStyle = colour("accent");
    if (own) context.fillRect(own.left, own.bottom + 1, own.wide, 3); // the token that looks
  }, [row, faint, token, width, scheme, first, hasNoEffect]);
  return html`<div><h4>What <span class="piece">${shown(pieces[token] ?? "")}</span> looks at in ${where}</h4>
    <p class="note">The underlined token looks. ${note}</p>
    ${row.length > MOST_WORDS && html`<p class="note">Tokens ${first} to ${first + some.length - 1} of ${counted(row.length)}.</p>`}
    <div class="arcs words" ref=${box}><canvas ref=${canvas} aria-hidden="true"></canvas>
      <${Tokens} pieces=${some} first=${first} chosen=${wanted} onChoose=${pick} label="token that is looked at" /></div>
    <ol class="near">${strongest(row, MOST_LISTED,
      0).map(([at, p]) => html`<li key=${at}><button type="button" class="quiet" aria-pressed=${at === wanted} onClick=${() => pick(at)}><span class="piece">
      ${shown(pieces[at] ?? "")}</span></button> <span class="id">${at}</span> <span class="num" data-weight=${p.toPrecision(6)}>${percent(p)}</span></li>`)}</ol></div>`;
}

/** The largest of some numbers above `least`: [place, number], the largest first. */
export function strongest(values, most, least) {
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
