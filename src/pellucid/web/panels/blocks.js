// blocks: the residual stream through all layers at one token, and what each part adds.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { streamPoints } from "/web/picture/flow.js";
import { addedPoint, partsOf } from "/web/picture/layout.js";
import { Picture, colour } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { number, shown } from "/web/parts/text.js";

const SERIES = [["stream", "residual stream after the block"], ["attention", "attention adds"], ["recurrent", "recurrent layer adds"], ["cross", "attention to the source adds"],
  ["feedforward", "feed-forward adds"]];
const BAR = 6, LEAST_BARS = 2, LABEL = 34, VALUE = 64;

export const blocks = {
  id: "blocks",
  title: "Blocks",
  about: "Every block reads the residual stream and adds to it: first what attention takes from other tokens, then what the feed-forward makes of it.",
  has: (info) => info.blocks.length > 0,
  View,
};

function View({ look, width, at, choose }) {
  const norms = streamPoints(look.info), state = useTrace(look, { norms }), before = useTrace({ ...look, edits: [] }, look.edits.length ? { norms } : {});
  const rows = state.arrays && lengthsOf(look, state.arrays, at.token),
    old = look.edits.length && before.arrays ? lengthsOf(look, before.arrays, at.token) : null;
  const has = (part) => part === "stream" || look.info.blocks.some((_, layer) => partsOf(look.info, layer).includes(part));
  return html`<div><p class="note">Lengths of the vectors at <span class="piece">${shown(look.pieces[at.token] ?? "")}</span>. Click a block to choose it.</p>
    <ul class="legend">${[...SERIES.filter(([part]) => has(part)),
      ...(old ? [["before", "before the change"]] : [])].map(([part, text]) => html`<li key=${part}><span class=${`mark ${part}`}></span>${text}</li>`)}</ul>
    <${State} state=${state}>${rows && html`<${Lengths} rows=${rows} old=${old} block=${at.block} width=${width} onPick=${(block) => choose({ block })} />`}
      <//></div>`;
}

/** The lengths at a token, a row for each block: {stream, attention, recurrent, cross, feedforward}; NaN where the block has no such part. */
function lengthsOf({ info }, arrays, token) {
  const of = (name) => (name && arrays[name]?.values[token]) ?? NaN;
  return info.blocks.map((_, layer) => ({ stream: of(`blocks.${layer}.residual`),
    ...Object.fromEntries(SERIES.slice(1).map(([part]) => [part, of(addedPoint(info, layer, part))])) }));
}

function Lengths({ rows, old, block, width, onPick }) {
  const most = Math.max(...[...rows, ...(old ?? [])].flatMap((one) => Object.values(one).filter(Number.isFinite)), 1e-9), room = width - LABEL - VALUE;
  const bars = rows.map((one) => SERIES.slice(1).filter(([part]) => Number.isFinite(one[part])).length), high = 8 + BAR * Math.max(LEAST_BARS, ...bars);
  const bar = (context, part, value, was, y, tall) => {
    if (!Number.isFinite(value)) return false;
    context.fillStyle = colour(part);
    context.fillRect(LABEL, y, Math.max(1, (value / most) * room), tall);
    if (Number.isFinite(was)) {
      context.fillStyle = colour("before");
      context.fillRect(LABEL + (was / most) * room - 1, y - 1, 2, tall + 2);
    }
    return true;
  };
  const paint = (context, w) => rows.forEach((one, layer) => {
    const y = layer * high;
    context.fillStyle = colour("chosen");
    if (layer === block) context.fillRect(0, y, w, high);
    context.fillStyle = colour("ink");
    context.fillText(String(layer), 4, y + 14);
    bar(context, "stream", one.stream, old?.[layer].stream, y + 1, 5);
    let top = y + 7;
    for (const [part] of SERIES.slice(1)) top += bar(context, part, one[part], old?.[layer][part], top, BAR - 1) ? BAR : 0;
    context.fillStyle = colour("faint");
    context.fillText(number(one.stream), w - VALUE + 6, y + 14);
  });
  const at = (x, y) => {
    const layer = Math.floor(y / high), one = rows[layer];
    return one ? `block ${layer}: ${SERIES.filter(([part]) => Number.isFinite(one[part])).map(([part, text]) => `${text} ${number(one[part])}`).join(", ")}`
      : "";
  };
  return html`<${Picture} width=${width} height=${rows.length * high} paint=${paint} at=${at} of=${[rows, old, block, width]}
    onPick=${(x, y) => onPick(Math.max(0, Math.min(rows.length - 1, Math.floor(y / high))))}
      slider=${{ value: block, most: rows.length - 1, text: at(0, block * high), onChange: onPick }}
    label=${`lengths after ${rows.length} blocks, from ${number(rows[0].stream)} to ${number(rows.at(-1).stream)}`} />`;
}
