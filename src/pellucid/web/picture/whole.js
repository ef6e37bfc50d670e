// The whole picture: one token's journey from the text through one block to the drawn token, and round again.

import { Component, html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { BY_ROW, COLUMNS } from "/web/picture/columns.js";
import { PANELS, ROW, UNIT, fills, partsOf } from "/web/picture/layout.js";
import { LANES, Lanes } from "/web/picture/lanes.js";
import { band, bent, ribbon, round } from "/web/picture/marks.js";
import { Part, fit, widthOf } from "/web/picture/svg.js";
import { Front } from "/web/picture/replay.js";
import { Marks } from "/web/picture/why.js";
import { Still, alike } from "/web/parts/show.js";
import { counted, number } from "/web/parts/text.js";

const HEAD = 58, LOOP = 64, COST = 10, WIDEST = 0.62; // pixels above the rows and below them; share of a row that the widest ribbon has
const TITLE = UNIT * 1.06, BOLD = 1.12; // the type of a title, and how much wider it is than plain type

/**
 * One section of the picture. `scene` has what all columns share:
 * {rows, y(i), ids, labels, promptLength, at, choose, edit, look, flow, before, candidates, drawn, drawnLabel, nameOf, onDraw,
 * size, most, stop, isRead, isMoving, beat}.
 */
export class Section extends Component {
  shouldComponentUpdate({ scene, section, width }) {
    return scene !== this.props.scene || section !== this.props.section || width !== this.props.width;
  }

  render({ scene, section, width, sections, index, children }) {
    const { columns } = section, rows = scene.rows, row = ROW, head = HEAD + (scene.costs.isOn ? COST : 0), bottom = section.last ? LOOP : 12;
    const y = (i) => head + i * row + row / 2, slices = columns.filter((one) => one.id === "slice"), lanes = head + rows.length * row + 12, low = slices.length ? Math.ceil(LANES / row) : 0;
    const count = Math.max(rows.length + low, section.last ? scene.candidates.length + (scene.tries ? 2 : 0) : 0), height = head + count * row + bottom;
    const mine = { ...scene, y }, chosen = rows.findIndex((one) => one.t === scene.at.token);
    const inside = columns.filter((one) => one.part), box = inside.length ? [inside[0].x - 8, 4, inside.at(-1).x + inside.at(-1).width + 8, head + rows.length * row + 6] : null;
    const { replay } = scene, clip = `front${index}`, names = columns.filter((one) => one.id !== "slice" && (one.id !== "text" || section.first)), places = slices.length && inside.length ? cellsOf(slices, inside, scene.at.block) : null;
    const loops = section.last && scene.look.info.generates, way = loops && wayOf(columns, y, rows.length, y(count - 1) + row / 2, section.isNarrow);
    return html`<div class="section"><svg class="picture-svg" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} font-size=${UNIT} role="group" aria-label="the pipeline, from the text to the next token">
      <defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" /></marker>${replay?.isOn && html`<clipPath id=${clip}><rect x="0" y="0" width="0" height=${height} /></clipPath>`}</defs>
      <g clip-path=${replay?.isOn ? `url(#${clip})` : null}>
      ${chosen >= 0 && (section.first || section.block) && html`<rect class="chosen-row" x="0" y=${y(chosen) - row / 2} width=${width} height=${row} rx="4" />`}
      ${box && html`<${Still} isStill of=${[...box, scene.at.block, scene.look.info, scene.choose]} body=${() => html`<${Box} box=${box} scene=${mine} />`} />`}
      ${places && html`<${Slices} cells=${places} top=${head - 4} bottom=${head + rows.length * row + 4} scene=${mine} />`}
      ${inside.length > 0 && html`<g class="ribbons"><${Rows} scene=${mine} row=${row} draws=${ribbons({ columns, inside, scene: mine, row })} /></g>`}
      ${names.map((one) => html`<${Head} key=${one.key} column=${one} scene=${mine} section=${section} />`)}
      ${places && html`<${Lanes} ...${scene.lanes} cells=${places} top=${lanes} />`}
      ${columns.filter((one) => one.id !== "slice").map((column) => html`<g key=${column.key} class=${`column ${column.id} ${lit(scene.beat, column)}`}>${BY_ROW[column.id]
        ? html`<${Rows} scene=${mine} row=${row} draws=${cells(column, mine)} fold=${column.id === "text" && ((one) => COLUMNS.text({ rows: [one], column, scene: { ...mine, y: level } }))} />`
        : COLUMNS[column.id]({ rows, column, scene: mine })}</g>`)}
      ${places && !replay?.isOn && html`<${Marks} why=${scene.why} cells=${places} rows=${rows} y=${y} choose=${scene.choose} edges=${edgesOf(inside)} />`}
      ${children}</g>
      ${loops && (!replay?.isOn || replay.moment.stage.id === "loop") && html`<${Loop} scene=${mine} way=${way} width=${width} />`}
      ${replay?.isOn && html`<${Front} replay=${replay} columns=${columns} sections=${sections} index=${index} rows=${rows} y=${y} height=${head + rows.length * row + 6} chosen=${chosen} weights=${weightsOf(mine)} clip=${clip} />`}
      ${loops && replay?.isOn && scene.drawnLabel !== null && html`<g class="flight" visibility="hidden"><rect x="-30" y="-14" width="60" height="28" rx="14" /><text y="5" text-anchor="middle">${fit(scene.drawnLabel, 52, UNIT)}</text></g>`}</svg>
      ${loops && scene.isMoving && html`<span class="runner" aria-hidden="true" style=${{ left: `${way.to}px`, width: `${way.x - way.to}px`, top: `${way.low - 5}px` }}><i></i><i></i><i></i></span>`}</div>`;
  }
}

/** The place of each block: of a slice, or of the box of the unfolded block. */
function cellsOf(slices, inside, block) {
  const cells = [];
  for (const one of slices) cells[one.layer] = [one.x, one.width];
  cells[block] = [inside[0].x - 8, inside.at(-1).x + inside.at(-1).width - inside[0].x + 16];
  return cells;
}

/** What the chosen token reads in the unfolded block: [[row, weight], …] of the rows that are drawn. */
function weightsOf({ rows, flow, at }) {
  const weights = flow.pattern(at.token);
  return weights ? rows.map((row, i) => [i, row.t === undefined ? 0 : weights[row.t]]).filter(([, weight]) => weight > 0.03) : [];
}

/** Where the marks of causes stand in the unfolded block: by the columns' ids. */
const edgesOf = (inside) => Object.fromEntries(inside.map((one) => [one.id, one.x + one.width * (one.id === "pattern" ? 0.86 : 0.5)]));

/** All blocks but the unfolded one, as thin slices. A drag along them moves the lens. */
function Slices({ cells, top, bottom, scene: { at, choose } }) {
  const first = cells[0][0], [x, wide] = cells.at(-1), range = x + wide - first, last = cells.length - 1, isOpen = (layer) => layer === at.block;
  const pick = (event) => {
    const svg = event.currentTarget.ownerSVGElement, { left, width } = svg.getBoundingClientRect(), at = ((event.clientX - left) * svg.viewBox.baseVal.width) / width;
    choose({ block: Math.max(0, Math.min(last, Math.floor(((at - first) / range) * (last + 1)))) });
  };
  const onDown = (event) => {
    event.currentTarget.setPointerCapture(event.pointerId);
  };
  const onMove = (event) => event.currentTarget.hasPointerCapture(event.pointerId) && pick(event);
  const each = cells.find((_, layer) => !isOpen(layer))?.[1] ?? 20, step = each > 16 ? 1 : each > 7 ? 2 : 5;
  return html`<g class="slices" onPointerDown=${onDown} onPointerMove=${onMove}>${cells.map(([x, width], layer) => !isOpen(layer) && html`<g key=${layer} data-layer=${layer} onClick=${() => choose({ block: layer })}>
    <rect class="slice" x=${round(x + 0.5)} y=${top} width=${round(Math.max(1, width - 1))} height=${bottom - top} /><rect class="hit" x=${x} y=${top - 14} width=${width} height=${bottom - top + 14} /><title>${`unfold block ${layer}`}</title>
    ${(layer === 0 || layer === last || (layer % step === 0 && Math.min(Math.abs(layer - last), layer) * each > 14)) && Math.abs(layer - at.block) * each > 8 && html`<text class="small faint" x=${x + width / 2} y=${top - 5} text-anchor="middle">${layer}</text>`}</g>`)}</g>`;
}

const level = () => 0;

/**
 * The rows of a column. `draws(row)` is [depends, draw]: a row is drawn again if an entry of `depends` is another, else its
 * drawing is kept. A row has its place by its token, and all rows move together: while tokens come one attribute changes,
 * not one for each row.
 */
class Rows extends Component {
  constructor() {
    super();
    this.kept = new Map();
  }

  render({ scene: { rows, y }, row, draws, fold }) {
    const known = this.kept, tokens = rows.filter((one) => one.t !== undefined);
    this.kept = new Map();
    const drawn = tokens.map((one) => {
      const [depends, draw] = draws(one), before = known.get(one.t), isSame = before && alike(before.depends, depends);
      const now = isSame ? before : { depends, drawing: html`<g key=${one.t} transform=${`translate(0 ${one.t * row})`}>${draw()}</g>` };
      this.kept.set(one.t, now);
      return now.drawing;
    });
    const folds = fold ? rows.map((one, i) => one.t === undefined && html`<g key=${`fold${i}`} transform=${`translate(0 ${y(i)})`}>${fold(one)}</g>`) : null;
    return html`<g transform=${`translate(0 ${tokens.length ? y(rows.indexOf(tokens[0])) - tokens[0].t * row : 0})`}>${drawn}</g>${folds}`;
  }
}

/** What a column has for each row, for `Rows`. */
function cells(column, scene) {
  const depends = BY_ROW[column.id], draw = COLUMNS[column.id];
  return (one) => [[column, ...depends(one, scene, column)], () => draw({ rows: [one], column, scene: { ...scene, y: level } })];
}

/** Whether a column has its turn while the picture is shown slowly. */
function lit(beat, column) {
  return beat === column.key ? "lit" : "";
}

function Box({ box: [left, top, right, bottom], scene }) {
  const { at, look, choose } = scene, last = look.info.blocks.length - 1, x = left + 14;
  const title = `block ${at.block} of ${look.info.blocks.length}`, step = (by) => () => choose({ block: Math.max(0, Math.min(last, at.block + by)) });
  return html`<g class="block-box"><rect x=${left} y=${top} width=${right - left} height=${bottom - top} rx="10" />
    <${Part} name="title" label=${`open ${title}`} about="open the block" onClick=${() => choose({ view: "block" })}><rect class="hit" x=${x - 4} y=${top + 2} width=${widthOf(title, UNIT * 1.1) + 8} height="24" /><text class="head" x=${x} y=${top + 19}>${title}</text><//>
    ${[[-1, "◀", "the block before"], [1, "▶", "the block after"], [0, "⤢", "open the block"]].map(([by, sign, label], n) => html`<${Part} key=${sign} name="tool" label=${label} onClick=${by ? step(by) : () => choose({ view: "block" })}>
      <rect class="hit" x=${right - 84 + n * 26} y=${top + 1} width="24" height="24" /><text x=${right - 72 + n * 26} y=${top + 18} text-anchor="middle">${sign}</text><//>`)}</g>`;
}

/** A column's title with its shape; a click opens its panel. */
function Head({ column, scene, section }) {
  const { choose, size } = scene, isInside = !!column.part, y = isInside ? 38 : 22, middle = isInside || column.id !== "text" ? column.x + column.width / 2 : column.x + column.width - 6;
  const anchor = column.id === "text" ? "end" : "middle", cost = scene.costs.of(column), sub = scene.costs.isOn ? cost?.label ?? "" : shapeOf(column, scene), title = column.id === "add" ? "" : column.title;
  if (!title && !sub) return null;
  const small = Math.min(1, (column.width - 5) / (widthOf(title, TITLE) * BOLD)); // in a narrow column
  const isFilled = fills(scene.look.info) && ["logits", "softmax"].includes(column.id); // no panel is about masks
  const open = () => choose({ panel: isFilled ? "blocks" : PANELS[column.id] }), state = [lit(scene.beat, column), scene.toured === column.id ? "toured" : ""];
  const body = () => html`<${Part} name=${`stage ${column.part} ${state.join(" ")}`} label=${`${title} ${sub}: open ${column.title}`} data-stage=${column.id} onClick=${open} key=${section.first}>
    <rect class="hit" x=${column.x} y=${y - 17} width=${column.width} height="34" /><text class="head" x=${middle} y=${y} text-anchor=${anchor} style=${small < 1 ? { fontSize: `${(TITLE * small).toFixed(1)}px` } : null}>${title}</text> <text class="small faint" x=${middle} y=${y + 14} text-anchor=${anchor}>${fit(sub, column.width - 2, size * 0.85)}</text>
    ${cost && html`<rect class="cost" data-cost=${cost.value} x=${anchor === "end" ? middle - cost.width : middle - cost.width / 2} y=${y + 19} width=${cost.width} height=${6} rx="2" />`}<//>`;
  return html`<${Still} isStill of=${[column, sub, cost?.value, cost?.width, choose, ...state]} body=${body} />`;
}

/** The shape of what a column has, in the field's letters and with the model's sizes. */
function shapeOf(column, { look, at, ids, promptLength, candidates, kept, form, size }) {
  const { info } = look, block = info.blocks[at.block] ?? {}, width = info.width || "", count = ids.length, n = (x) => (x === undefined ? "" : counted(x)), long = (text, short) => (widthOf(text, size * 0.85) <= column.width - 2 ? text : short);
  const shapes = {
    text: count > promptLength && promptLength ? `${promptLength} + ${count - promptLength}` : `${count}`, tokens: long(`(B, T) = (1, ${count})`, `(1, ${count})`), embed: long(`(B, T, D) = (1, ${count}, ${width})`, `(1, ${count}, ${width})`), position: info.position === "unknown" ? "" : info.position, norm: `${width}`,
    qkv: block.heads ? `${block.heads}·${block.kv_heads ?? block.heads} × ${block.head_width ?? ""}` : "", pattern: block.heads ? `${block.heads} × ${count} × ${count}` : "",
    source: block.heads && look.source ? `${block.heads} × ${count} × ${look.source.ids.length}` : "", state: "", neurons: block.hidden ? long(`${width} → ${n(block.hidden)} → ${width}`, `${width} → ${n(block.hidden)}`) : "", experts: block.experts ? `${block.active_experts} of ${block.experts}` : "",
    logits: `(V) = ${n(info.vocabulary)}`, softmax: form ? long(`T ${form.temperature} · k ${form.topK || "all"} · p ${form.topP}`, `T ${form.temperature} k ${form.topK || "all"} p ${form.topP}`) : "", draw: candidates.length ? kept ? `from ${counted(kept)}` : "" : "", pooled: info.points[info.output?.point]?.shape?.match(/(\d+)\)$/)?.[1] ?? width, labels: info.output?.labels ? `(N) = ${n(info.output.labels.length)}` : "",
  };
  return shapes[column.id] ?? "";
}

/** The lengths of the residual stream of a token: before the block and after each of its parts, and after all blocks; `old` without the changes. */
function sizesOf({ flow, before, at, look }, t) {
  const sizes = (from) => ({ inside: [from.residual(at.block - 1, t), ...from.inside(t), from.residual(at.block, t)], all: [from.residual(-1, t), ...look.info.blocks.map((_, layer) => from.residual(layer, t))] });
  return { now: sizes(flow), old: before && sizes(before) };
}

/** The residual stream of each token through all blocks, as wide as the vector is long, for `Rows`. */
function ribbons(place) {
  const { columns, scene } = place, { at, low, high, flow } = scene;
  return ({ t }) => {
    const { now, old } = sizesOf(scene, t);
    return [[...now.inside, ...now.all, ...(old?.all ?? []), ...(old?.inside ?? []), columns, low, high, flow.isStale, t === at.token], () => ribbonOf(t, now, old, place)];
  };
}

/** The width of a ribbon for a vector's length, on a logarithmic scale. */
function thickness(value, { low, high }, row) {
  if (!(value > 0)) return 3;
  const share = Math.log(value / low) / Math.max(Math.log(high / low), 1);
  return 4 + (row * WIDEST - 4) * Math.max(0, Math.min(1, share));
}

function ribbonOf(t, now, old, { columns, inside, scene, row }) {
  const { flow, at, look } = scene, adds = inside.filter((one) => one.id === "add"), start = columns.find((one) => one.id === "position"), slices = columns.filter((one) => one.id === "slice"), end = columns.find((one) => one.x > inside.at(-1).x && !one.part && one.id !== "slice");
  const wide = (value) => thickness(value, scene, row), [left, right] = [inside[0].x - 10, inside.at(-1).x + inside.at(-1).width + 10];
  const borders = [left, ...adds.map((one) => one.x + one.width / 2), right];
  // A narrow picture has the parts of a block one below the other: each begins with its own length.
  const own = (values) => values.slice(adds.length > 1 ? 0 : partsOf(look.info, at.block).indexOf(inside[0].part));
  const through = (some, all) => some.map((one) => [one.x + one.width / 2, wide(all[one.layer + 1])]);
  const paths = ({ inside: values, all }, kind) => {
    const parts = borders.slice(1).map((x1, n) => {
      const value = own(values)[Math.min(n, own(values).length - 1)];
      return [value, ribbon(borders[n], x1, 0, wide(value), wide(value))];
    });
    if (start) parts.unshift([all[at.block], band([[start.x + start.width - 4, wide(all[0])], ...through(slices.filter((one) => one.layer < at.block), all), [left, wide(all[at.block])]], 0)]);
    if (slices.length && end) parts.push([all[at.block + 1], band([[right, wide(all[at.block + 1])], ...through(slices.filter((one) => one.layer > at.block), all), [end.x - 6, wide(all.at(-1))]], 0)]);
    return parts.map(([value, d], n) => html`<path key=${`${kind}${n}`} class=${kind || (value === undefined ? "unread" : "")} d=${d} />`);
  };
  const [first, last] = [now.inside[0], now.inside.at(-1)];
  return html`<g class=${`ribbon ${t === at.token ? "chosen" : ""} ${flow.isStale ? "stale" : ""}`} data-token=${t} data-residual=${last?.toPrecision(7)}>${old && paths(old, "before")}${paths(now, "")}
    <title>${now.inside.every(Number.isFinite) ? `length ${number(first)} before block ${at.block}, ${number(last)} after it` : "not read yet"}</title></g>`;
}

/** The way back, from the drawn token down, along `low` from x to `to`, and up to the next row of the text. */
function wayOf(columns, y, count, top, isNarrow) {
  const draw = columns.at(-1), x = draw.x + draw.width - 24, low = top + 34, to = isNarrow ? 24 : columns[0].x + 20;
  return { x, to, low, path: bent([[x, y(0) + 36], [x, low], [to, low], [to, isNarrow ? low - 22 : y(count) + 16]], 16), row: isNarrow ? null : [columns[0], y(count)] };
}

/** The way back: the drawn token is appended, and the model reads on. */
function Loop({ scene, way: { path, low, row }, width }) {
  const { drawnLabel, isGiven, ids, at, isMoving, running, size, choose, replay } = scene, next = at.token + 1;
  const label = drawnLabel === null ? (isMoving ? "the model reads the next token" : "run: draw a token, append it, and round again") : isGiven ? `the prompt goes on with “${drawnLabel}”: nothing is drawn` : `append “${drawnLabel}” as token ${next}${next < ids.length ? "" : ", and round again"}`;
  const wide = Math.min(width - 60, widthOf(label, size) * 1.08 + 28), middle = width / 2;
  return html`<g class="loop"><path class="way" d=${path} marker-end="url(#tip)" />
    ${row && drawnLabel !== null && !replay?.isOn && html`<${Part} name="next" label=${`go to token ${next}: ${drawnLabel}`} onClick=${() => choose({ token: next, key: -1, dim: -1, point: "" })}><rect class="hit" x=${row[0].x + 8} y=${row[1] - 13} width=${row[0].width - 8} height="26" rx="13" /><text class="word" x=${row[0].x + row[0].width - 6} y=${row[1] + 5} text-anchor="end">${fit(drawnLabel, row[0].width - 22, size * 1.1)}</text><//>`}
    ${running && html`<${Requests} running=${running} path=${path} x=${middle + wide / 2 + 14} y=${low} size=${size} />`}
    <rect x=${middle - wide / 2} y=${low - 14} width=${wide} height="28" rx="14" /><text x=${middle} y=${low + 5} text-anchor="middle">${fit(label, wide - 20, size)}</text></g>`;
}

const MAX_DOTS = 24, ROUND = 6; // requests that are drawn one by one; seconds of a round

/** The requests that run on the server, as dots on the way back: whoever asked for them. */
function Requests({ running: { running, waiting, replicas }, path, x, y, size }) {
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches, count = Math.min(running, MAX_DOTS), up = Object.entries(replicas ?? {});
  const said = `${running} ${running === 1 ? "request runs" : "requests run"}, ${waiting} ${waiting === 1 ? "waits" : "wait"}${up.length ? `; ${up.filter(([, one]) => one).length} of ${up.length} replicas are up` : ""}`;
  return html`<g class="requests" data-running=${running} data-waiting=${waiting}>${Array.from({ length: count }, (_, i) => html`<circle key=${i} r="5" ...${isStill ? { cx: x + 12 + i * 14, cy: y } : {}}>
      ${!isStill && html`<animateMotion dur=${`${ROUND}s`} begin=${`${((-i * ROUND) / count).toFixed(2)}s`} repeatCount="indefinite" path=${path} />`}</circle>`)}
    <text class="small faint" x=${x} y=${y + 16 + size * 0.6}>${said}</text>${up.length > 0 && html`<text class="small faint" x=${x} y=${y + 30 + size * 0.6}>${up.map(([name, one]) => `${name} ${one ? one.running : "down"}`).join(", ")}</text>`}</g>`;
}

/** What all rows share: the least and the greatest length of a vector in the picture. */
export function scalesOf(rows, flow, info) {
  let [low, high] = [Infinity, 0];
  for (const { t } of rows) {
    if (t === undefined) continue;
    for (let layer = -1; layer < info.blocks.length; layer++) {
      const size = flow.residual(layer, t);
      if (size > 0) [low, high] = [Math.min(low, size), Math.max(high, size)];
    }
  }
  return high > 0 ? { low, high } : { low: 1, high: 1 };
}
