// Below the rows, one cell for each block: what the block adds to the chosen token's vector, what the model would say if it ended there, and the rank of the token that came.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { bytes } from "/web/picture/graph.js";
import { UNIT, addedPoint, partsOf } from "/web/picture/layout.js";
import { round } from "/web/picture/marks.js";
import { fit, widthOf } from "/web/picture/svg.js";
import { counted, number, percent } from "/web/parts/text.js";

const BARS = 40, WORDS = 20, RANKS = 34, GAP = 8, SHADES = 5; // pixels of the lanes, and between them; shades of a probability
export const LANES = BARS + WORDS + RANKS + 3 * GAP + 12;

/** The lengths of what each block adds, or the blocks' `costs` in bytes: [{residual, parts: [[part, value]]}]. */
function rowsOf({ look, flow, at, costs }) {
  if (costs) return costs.map(({ total, parts }) => ({ residual: total, parts }));
  const { info } = look;
  return info.blocks.map((_, layer) => ({ residual: flow.residual(layer, at.token), parts: partsOf(info, layer).filter((part) => addedPoint(info, layer, part)).map((part) => [part, flow.added(layer, part, at.token)]) }));
}

/** `cells` are the places of the blocks, [[x, width], …]; `lens` is what `useLens` returns. Of the block `unknown` nothing has been computed yet, and nothing is drawn. */
export function Lanes({ look, flow, at, choose, cells, top, lens: all, costs, isMoving, isHidden, unknown = -1, isLeft = true }) {
  const rows = rowsOf({ look, flow, at, costs }), lens = unknown < 0 || !all ? all : { ...all, rows: all.rows.map((one, layer) => (layer === unknown ? null : one)) }, last = rows.length - 1, left = cells[0][0];
  const most = Math.max(...rows.flatMap((one) => [...(costs ? [one.residual] : []), ...one.parts.map(([, value]) => value)]).filter(Number.isFinite), 1e-9), floor = top + BARS;
  const size = (value) => (Number.isFinite(value) ? Math.max(1, (BARS * value) / most) : 0), amount = (value) => (costs ? bytes(value) : number(value ?? NaN)), verb = costs ? "reads" : "adds";
  const reads = (layer) => (lens?.rows[layer] ? `, would say ${lens.rows[layer].name} ${percent(lens.rows[layer].p)}` : "");
  const said = (layer) => `block ${layer}: ${amount(rows[layer].residual)}${rows[layer].parts.map(([part, value]) => `, ${part} ${verb} ${amount(value)}`).join("")}${reads(layer)}`;
  const onKeyDown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose({ block: Math.max(0, Math.min(last, at.block + by)) });
  };
  const kinds = [...new Set(rows.flatMap((one) => one.parts.map(([part]) => part)))];
  const bars = (kind) => rows.map(({ parts }, layer) => parts.map(([part, value], n) => {
    const [x, width] = cells[layer], wide = Math.min(14, width / Math.max(2, parts.length)) * 0.86, from = x + width / 2 + (n - parts.length / 2) * wide;
    return part === kind && layer !== unknown && size(value) ? `M${round(from)} ${floor}v${-round(size(value))}h${round(Math.max(0.8, wide - 0.4))}v${round(size(value))}z` : "";
  }).join("")).join("");
  const totals = costs && rows.map(({ residual }, layer) => `M${round(cells[layer][0] + 1)} ${floor}v${-round(size(residual))}h${round(Math.max(1, cells[layer][1] - 2))}v${round(size(residual))}z`).join("");
  const label = (y, text) => isLeft && html`<text class="small faint" x=${left - 10} y=${y} text-anchor="end">${text}</text>`;
  return html`<g class="stack" role="slider" tabindex="0" aria-label="block" aria-valuemin="0" aria-valuemax=${last} aria-valuenow=${at.block} aria-valuetext=${said(at.block)} onKeyDown=${onKeyDown}>
    <rect class="focus" x=${left - 3} y=${top - 4} width=${cells.at(-1)[0] + cells.at(-1)[1] - left + 6} height=${(lens ? LANES : BARS + 12) - 4} rx="4" />
    ${label(floor - 14, costs ? "weights of each block, bytes" : "length of what is added")}${!costs && label(floor - 1, kinds.map((kind, n) => html`<tspan key=${kind} class=${`is-${kind}`}>${n > 0 ? "  " : ""}■ ${KINDS[kind]}</tspan>`))}
    ${totals && html`<path class="cost" d=${totals} />`}${kinds.map((kind) => html`<path key=${kind} class=${kind} d=${bars(kind)} />`)}
    ${lens && html`<${Words} lens=${lens} cells=${cells} y=${floor + GAP + 4} label=${label} /><${Ranks} lens=${lens} cells=${cells} y=${floor + WORDS + 2 * GAP + 6} at=${at} label=${label} isHidden=${isHidden} />`}
    ${rows.map((one, layer) => html`<g key=${layer} class=${`level ${layer === at.block ? "chosen" : ""}`} data-layer=${layer} data-residual=${costs ? null : one.residual?.toPrecision(7)} data-bytes=${costs && one.residual} data-says=${lens?.rows[layer]?.id} onClick=${() => choose({ block: layer })}><rect class="hit" x=${cells[layer][0]} y=${top} width=${cells[layer][1]} height=${(lens ? LANES : BARS + 12) - 8} />${!isMoving && html`<title>${said(layer)}</title>`}</g>`)}</g>`;
}

const KINDS = { attention: "attention", recurrent: "recurrent", cross: "to the source", feedforward: "feed-forward" };

/** What the model would say after each block: equal tokens side by side are one field. */
function Words({ lens, cells, y, label }) {
  const runs = [];
  lens.rows.forEach((one, layer) => {
    const before = runs.at(-1);
    if (before && one && before.id === one.id) Object.assign(before, { to: layer, p: Math.max(before.p, one.p) });
    else if (one) runs.push({ from: layer, to: layer, ...one });
  });
  return html`<g class="words">${label(y + 9, "if the model stopped here, it would say")}
    ${lens.rows.map((one, layer) => one && html`<rect key=${layer} class=${`says p${Math.max(1, Math.ceil(one.p * SHADES))}`} x=${round(cells[layer][0])} y=${y} width=${round(cells[layer][1])} height=${WORDS} />`)}
    ${runs.map(({ from, to, name, id, p }) => {
      const x = cells[from][0], width = cells[to][0] + cells[to][1] - x, text = to > from || width < 90 ? name : `${name} ${percent(p)}`;
      return html`<g key=${from}><path class="edge" d=${`M${round(x)} ${y}v${WORDS}`} />${width > Math.min(30, widthOf(name, UNIT * 0.85) + 4) && html`<text class=${`small ${id === lens.answer ? "answer" : ""}`} x=${round(x + width / 2)} y=${y + 14} text-anchor="middle">${fit(text, width - 3, UNIT * 0.85)}</text>`}</g>`;
    })}</g>`;
}

/** The rank of the answer after each block, on a logarithmic scale: the first place is at the top. */
function Ranks({ lens, cells, y, at, label, isHidden }) {
  const known = lens.rows.map((one, layer) => [layer, one?.rank]).filter(([, rank]) => rank > 0);
  if (known.length < 2) return null;
  const most = Math.log(Math.max(...known.map(([, rank]) => rank), 10)), place = ([layer, rank]) => [round(cells[layer][0] + cells[layer][1] / 2), round(y + 6 + (RANKS - 10) * (Math.log(rank) / most))];
  const here = known.find(([layer]) => layer === at.block), [x, high] = here ? place(here) : [];
  return html`<g class="ranks">${label(y + 12, isHidden ? "rank of the answer" : html`rank of <tspan class="answer">${lens.name}</tspan>`)}${known[0][0] === 0 && label(y + RANKS - 2, `${counted(known[0][1])} of ${counted(lens.vocabulary)}`)}
    <path class="first" d=${`M${cells[0][0]} ${y + 6}H${cells.at(-1)[0] + cells.at(-1)[1]}`} /><path class="rank" d=${`M${known.map((one) => place(one).join(" ")).join("L")}`} />
    ${here && html`<circle class="here" cx=${x} cy=${high} r="3.5" /><text class="small answer" x=${x} y=${high > y + RANKS / 2 ? high - 7 : high + 14} text-anchor=${x < cells[0][0] + 60 ? "start" : x > cells.at(-1)[0] - 60 ? "end" : "middle"}>${`${ordinal(here[1])} after block ${at.block}`}</text>`}
    ${cells.at(-1)[0] - (x ?? 0) > 110 && html`<text class="small answer" x=${cells.at(-1)[0] + cells.at(-1)[1]} y=${place(known.at(-1))[1] + 14} text-anchor="end">${ordinal(known.at(-1)[1])}</text>`}</g>`;
}

/** 1st, 2nd, 3rd, 4th … */
export function ordinal(n) {
  const ends = { one: "st", two: "nd", few: "rd", other: "th" };
  return `${counted(n)}${ends[new Intl.PluralRules("en", { type: "ordinal" }).select(n)]}`;
}

/** The lanes as a picture of their own: where the blocks are not in the picture. */
export function Stack({ width, ...more }) {
  const count = more.look.info.blocks.length, isLeft = width >= 700, left = isLeft ? 230 : 8, each = (width - left - 8) / count, high = more.lens ? LANES : BARS + 12;
  const cells = Array.from({ length: count }, (_, layer) => [left + layer * each, each]);
  return html`<svg class="picture-svg lanes" width=${width} height=${high + 20} viewBox=${`0 0 ${width} ${high + 20}`} font-size=${UNIT}><g><rect class="lens-here" x=${cells[more.at.block][0]} y="1" width=${each} height=${high + 16} rx="2" />
    ${cells.map(([x], layer) => (each > 15 || layer === more.at.block || (layer % 5 === 0 && Math.abs(layer - more.at.block) * each > 18)) && html`<text key=${layer} class=${`small ${layer === more.at.block ? "" : "faint"}`} x=${x + each / 2} y=${high + 14} text-anchor="middle">${layer}</text>`)}
    <${Lanes} ...${more} cells=${cells} top=${8} isLeft=${isLeft} /></g></svg>`;
}
