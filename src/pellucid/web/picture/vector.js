// One vector: all its numbers as cells, one to be chosen.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, heat, signedShade } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { number, shown } from "/web/parts/text.js";
import { operationOf, sizedShape } from "/web/picture/graph.js";
import { strongestOf } from "/web/parts/numbers.js";

const MAX_CELL = 22, LISTED = 12, LEFT = 46, TOP = 16, DIGITS = 40; // pixels of a cell, of the numbers before the rows and above the columns

/** Rows and columns of a vector of `count` numbers: heads have a row each, others nearly a square. */
export function gridOf(point, count) {
  const [, heads] = (point?.shape ?? "").match(/^\(B, H (\d+), T, T'\)$/) ?? [];
  if (heads && count % heads === 0) return [+heads, count / heads];
  const sizes = [...(point?.shape ?? "").matchAll(/ (\d+)/g)].map((one) => +one[1]);
  if (sizes.length === 2 && sizes[0] * sizes[1] === count) return sizes;
  const columns = Math.min(count, 2 ** Math.ceil(Math.log2(Math.sqrt(count) * 1.8)));
  return [Math.ceil(count / columns), columns];
}

export function Vector({ look, at, choose, width, height }) {
  const { info } = look, { point } = at, known = info.points[point], selection = known && `${point}[tokens=${at.token}]`;
  const state = useTrace(look, look.ids.length && known ? { points: [selection] } : {}), values = state.arrays?.[point]?.values;
  if (!known) return html`<p class="empty">Choose a vector: a strip in the picture, or a box of the block.</p>`;
  return html`<div class="vector"><p class="note">${known.about}. ${sizedShape(info, point, look.ids.length)}; here the row of token ${at.token}, ${shown(look.pieces[at.token] ?? "")}. ${operationOf(info, point)?.kernel ? `Operation ${operationOf(info, point).kernel}.` : ""}</p>
    <${State} state=${state}>${values && html`<${Cells} values=${values} known=${known} at=${at} choose=${choose} width=${width} height=${height} />`}<//></div>`;
}

function Cells({ values, known, at, choose, width, height }) {
  const [rows, columns] = gridOf(known, values.length), room = width - LEFT, cell = Math.max(1, Math.min(MAX_CELL, room / columns, Math.max(4, (height - 60) / rows))), wide = Math.min(room, cell * columns), tall = Math.max(cell, 2) * rows;
  const isPattern = (known.shape ?? "").endsWith("T')"), isOfHeads = isPattern || (known.shape ?? "").split(", ").length === 4;
  const padded = new Float32Array(rows * columns).fill(NaN);
  padded.set(values);
  let most = 0;
  for (const x of values) if (Math.abs(x) > most) most = Math.abs(x);
  const paint = (context) => {
    heat(context, padded, rows, columns, [LEFT, TOP, wide, tall], signedShade(0.75 * most || 1));
    axes(context, { rows, columns, wide, tall, first: isOfHeads ? (row) => `head ${row}` : (row) => row * columns });
    if (at.dim < 0 || at.dim >= values.length) return;
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    context.strokeRect(LEFT + (at.dim % columns) * (wide / columns) - 1, TOP + Math.floor(at.dim / columns) * (tall / rows) - 1, Math.max(4, wide / columns) + 2, Math.max(4, tall / rows) + 2);
  };
  // A weight is named by its head and the token that is seen.
  const pick = (dim) => dim < values.length && choose(isPattern ? { head: Math.floor(dim / columns), key: dim % columns, dim } : { dim });
  const cellAt = (from, size, count, x) => Math.max(0, Math.min(count - 1, Math.floor((x - from) / (size / count))));
  const place = (x, y) => cellAt(TOP, tall, rows, y) * columns + cellAt(LEFT, wide, columns, x);
  const named = (dim) => (isOfHeads ? `head ${Math.floor(dim / columns)}, ${isPattern ? "token" : "component"} ${dim % columns}` : `component ${dim}`);
  const said = (dim) => (dim >= 0 && dim < values.length ? `${named(dim)}: ${number(values[dim])}` : "");
  return html`<div><${Picture} width=${LEFT + wide} height=${TOP + tall} paint=${paint} of=${[values, at.dim, wide, tall]} at=${(x, y) => said(place(x, y))} onPick=${(x, y) => pick(place(x, y))}
      slider=${{ value: Math.max(0, at.dim), most: values.length - 1, text: said(Math.max(0, at.dim)), onChange: pick }} label=${`${values.length} numbers of ${at.point}`} />
    <p class="note">The largest: ${strongestOf(values, LISTED).map(([dim, value]) => html`<button type="button" key=${dim} class="quiet" aria-pressed=${dim === at.dim} onClick=${() => pick(dim)}>${named(dim)}: ${number(value)}</button> `)}</p></div>`;
}

/** Numbers before the rows and above the columns of a grid; the number of a cell is the sum of both, or has the head before it. */
function axes(context, { rows, columns, wide, tall, first }) {
  const across = wide / columns, down = tall / rows, step = 2 ** Math.max(0, Math.ceil(Math.log2(DIGITS / across))), stepDown = Math.max(1, Math.ceil(12 / down));
  context.fillStyle = colour("faint");
  context.textAlign = "left";
  for (let column = 0; column < columns; column += step) context.fillText(`${column ? "+" : ""}${column}`, LEFT + column * across + 1, TOP - 5);
  context.textAlign = "right";
  for (let row = 0; row < rows; row += stepDown) context.fillText(String(first(row)), LEFT - 6, TOP + (row + 0.5) * down + 4);
  context.textAlign = "left";
}
