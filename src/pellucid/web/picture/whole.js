// The whole picture: one token's journey from the text through one block to the drawn token, and round again.

import { Component, html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { BY_ROW, COLUMNS } from "/web/picture/columns.js";
import { PANELS, ROW, UNIT, addedPoint, fills, partsOf } from "/web/picture/layout.js";
import { bytes } from "/web/picture/graph.js";
import { bent, ribbon, round } from "/web/picture/marks.js";
import { Part, fit, widthOf } from "/web/picture/svg.js";
import { Still, alike } from "/web/parts/show.js";
import { counted, number } from "/web/parts/text.js";

const HEAD = 58, LOOP = 64, COST = 10, WIDEST = 0.52; // pixels above the rows and below them; share of a row that the widest ribbon has
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

  render({ scene, section, width, children }) {
    const { columns } = section, rows = scene.rows, row = ROW, head = HEAD + (scene.costs.isOn ? COST : 0), bottom = section.last ? LOOP : 12;
    const y = (i) => head + i * row + row / 2, count = Math.max(rows.length, section.last ? scene.candidates.length : 0), height = head + count * row + bottom;
    const mine = { ...scene, y }, chosen = rows.findIndex((one) => one.t === scene.at.token);
    const inside = columns.filter((one) => one.part), box = inside.length ? [inside[0].x - 8, 4, inside.at(-1).x + inside.at(-1).width + 8, head + rows.length * row + 6] : null;
    const names = columns.filter((one) => one.id !== "text" || section.first);
    const loops = section.last && scene.look.info.generates, way = loops && wayOf(columns, y, rows.length, y(count - 1) + row / 2, section.isNarrow);
    return html`<div class="section"><svg class="picture-svg" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} font-size=${UNIT} role="group" aria-label="the pipeline, from the text to the next token">
      <defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" /></marker></defs>
      ${chosen >= 0 && (section.first || section.block) && html`<rect class="chosen-row" x="0" y=${y(chosen) - row / 2} width=${width} height=${row} rx="4" />`}
      ${box && html`<${Still} isStill of=${[...box, scene.at.block, scene.look.info, scene.choose]} body=${() => html`<${Box} box=${box} scene=${mine} />`} />`}
      ${inside.length > 0 && html`<g class="ribbons"><${Rows} scene=${mine} row=${row} draws=${ribbons({ columns, inside, scene: mine, row })} /></g>`}
      ${names.map((one) => html`<${Head} key=${one.key} column=${one} scene=${mine} section=${section} />`)}
      ${columns.map((column) => html`<g key=${column.key} class=${`column ${column.id} ${lit(scene.beat, column)}`}>${BY_ROW[column.id]
        ? html`<${Rows} scene=${mine} row=${row} draws=${cells(column, mine)} fold=${column.id === "text" && ((one) => COLUMNS.text({ rows: [one], column, scene: { ...mine, y: level } }))} />`
        : COLUMNS[column.id]({ rows, column, scene: mine })}</g>`)}
      ${loops && html`<${Loop} scene=${mine} way=${way} width=${width} />`}${children}</svg>
      ${loops && scene.isMoving && html`<span class="runner" aria-hidden="true" style=${{ left: `${way.to}px`, width: `${way.x - way.to}px`, top: `${way.low - 5}px` }}><i></i><i></i><i></i></span>`}</div>`;
  }
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
  return beat === null ? "" : beat === column.key ? "lit" : "unlit";
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
  const body = () => html`<${Part} name=${`stage ${column.part} ${state.join(" ")}`} label=${`${column.title}${sub ? `, ${sub}` : ""}: open`} data-stage=${column.id} onClick=${open} key=${section.first}>
    <rect class="hit" x=${column.x} y=${y - 17} width=${column.width} height="34" /><text class="head" x=${middle} y=${y} text-anchor=${anchor} style=${small < 1 ? { fontSize: `${(TITLE * small).toFixed(1)}px` } : null}>${title}</text><text class="small faint" x=${middle} y=${y + 14} text-anchor=${anchor}>${fit(sub, column.width - 2, size * 0.85)}</text>
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

/** The lengths of the residual stream of a token: before the block, after each of its parts; `old` without the changes. */
function sizesOf({ flow, before, at }, t) {
  const sizes = (from) => [from.residual(at.block - 1, t), ...from.inside(t), from.residual(at.block, t)];
  return { now: sizes(flow), old: before && sizes(before) };
}

/** The residual stream of each token through the block, as wide as the vector is long, for `Rows`. */
function ribbons(place) {
  const { columns, scene } = place, { at, widest, flow } = scene;
  return ({ t }) => {
    const { now, old } = sizesOf(scene, t);
    return [[...now, ...(old ?? []), columns, widest, flow.isStale, t === at.token], () => ribbonOf(t, now, old, place)];
  };
}

function ribbonOf(t, now, old, { columns, inside, scene, row }) {
  const { flow, at, widest, look } = scene, adds = inside.filter((one) => one.id === "add"), start = columns.find((one) => one.id === "position");
  const wide = (value) => (value === undefined ? 3 : 2 + row * WIDEST * Math.sqrt(Math.min(1, value / widest)));
  const borders = [start ? start.x + start.width - 4 : inside[0].x - 10, ...adds.map((one) => one.x + one.width / 2), inside.at(-1).x + inside.at(-1).width + 10];
  // A narrow picture has the parts of a block one below the other: each begins with its own length.
  const own = (values) => values.slice(adds.length > 1 ? 0 : partsOf(look.info, at.block).indexOf(inside[0].part));
  const paths = (values, kind) => borders.slice(1).map((x1, n) => {
    const value = own(values)[Math.min(n, own(values).length - 1)];
    return html`<path key=${`${kind}${n}`} class=${kind || (value === undefined ? "unread" : "")} d=${ribbon(borders[n], x1, 0, wide(value), wide(value))} />`;
  });
  return html`<g class=${`ribbon ${t === at.token ? "chosen" : ""} ${flow.isStale ? "stale" : ""}`} data-token=${t} data-residual=${now.at(-1)?.toPrecision(7)}>${old && paths(old, "before")}${paths(now, "")}
    <title>${now.every(Number.isFinite) ? `length ${number(now[0])} before the block, ${number(now.at(-1))} after it` : "not read yet"}</title></g>`;
}

/** The way back, from the drawn token down, along `low` from x to `to`, and up to the next row of the text. */
function wayOf(columns, y, count, top, isNarrow) {
  const draw = columns.at(-1), x = draw.x + draw.width - 24, low = top + 34, to = isNarrow ? 24 : columns[0].x + 20;
  return { x, to, low, path: bent([[x, y(0) + 36], [x, low], [to, low], [to, isNarrow ? low - 22 : y(Math.max(0, count - 1)) + 18]], 16) };
}

/** The way back: the drawn token is appended, and the model reads on. */
function Loop({ scene, way: { path, low }, width }) {
  const { drawnLabel, isGiven, ids, at, isMoving, running, size } = scene, number = at.token + 1;
  const label = drawnLabel === null ? (isMoving ? "the model reads the next token" : "run: draw a token, append it, and round again") : isGiven ? `the prompt goes on with “${drawnLabel}”: nothing is drawn` : `append “${drawnLabel}” as token ${number}${number < ids.length ? "" : ", and round again"}`;
  const wide = Math.min(width - 60, widthOf(label, size) * 1.08 + 28), middle = width / 2;
  return html`<g class="loop"><path class="way" d=${path} marker-end="url(#tip)" />
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

/** What all rows share: the length of the widest ribbon. */
export function scalesOf(rows, flow, layer) {
  const sizes = rows.flatMap((row) => (row.t === undefined ? [] : [flow.residual(layer - 1, row.t), ...flow.inside(row.t), flow.residual(layer, row.t)])).filter(Number.isFinite).sort((a, b) => a - b);
  return { widest: sizes[Math.floor((sizes.length - 1) * 0.85)] || 1 };
}

/** The lengths of the residual stream after all blocks at one token, and what each part adds, as bars; or the blocks' `costs` in bytes. */
export function Stack({ look, flow, at, choose, width, costs, isMoving }) {
  const { blocks } = look.info, left = width < 700 ? 8 : 150, high = 44, each = (width - left - 8) / blocks.length;
  const rows = costs?.map(({ total, parts }) => ({ residual: total, parts })) ?? blocks.map((_, layer) => ({ residual: flow.residual(layer, at.token), parts: partsOf(look.info, layer).filter((part) => addedPoint(look.info, layer, part)).map((part) => [part, flow.added(layer, part, at.token)]) }));
  const most = Math.max(...rows.flatMap((one) => [one.residual, ...one.parts.map(([, value]) => value)]).filter(Number.isFinite), 1e-9), size = (value) => (Number.isFinite(value) ? Math.max(1, (high * value) / most) : 0);
  const amount = (value) => (costs ? bytes(value) : number(value ?? NaN)), verb = costs ? "reads" : "adds", [title, about] = costs ? ["weights", "bytes of each block"] : ["residual stream", `after each block, token ${at.token}`];
  const said = (layer) => `block ${layer}: ${amount(rows[layer].residual)}${rows[layer].parts.map(([part, value]) => `, ${part} ${verb} ${amount(value)}`).join("")}`;
  const onKeyDown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose({ block: Math.max(0, Math.min(blocks.length - 1, at.block + by)) });
  };
  const place = (layer) => left + layer * each, bar = Math.max(1, each * 0.72), box = (x, value, wide) => (size(value) ? `M${round(x)} ${high}v${-round(size(value))}h${round(wide)}v${round(size(value))}z` : "");
  const bars = (layers) => layers.map((layer) => box(place(layer) + 1, rows[layer].residual, bar)).join("");
  const thin = (layer) => bar / Math.max(2, rows[layer].parts.length + 1), kinds = [...new Set(rows.flatMap((one) => one.parts.map(([part]) => part)))];
  // All bars of a kind are one path: while tokens come all of them change.
  const thinBars = (kind) => rows.map(({ parts }, layer) => parts.map(([part, value], n) => (part === kind ? box(place(layer) + 1 + bar - (parts.length - n) * thin(layer), value, thin(layer) - 0.5) : "")).join("")).join("");
  return html`<svg class="picture-svg stack" width=${width} height=${high + 26} viewBox=${`0 0 ${width} ${high + 26}`} font-size=${UNIT} role="slider" tabindex="0" aria-label="block" aria-valuemin="0" aria-valuemax=${blocks.length - 1} aria-valuenow=${at.block} aria-valuetext=${said(at.block)} onKeyDown=${onKeyDown}>
    ${left > 100 && html`<text class="faint" x="4" y=${high / 2 + 2}>${title}</text><text class="small faint" x="4" y=${high / 2 + 17}>${about}</text>`}
    <path class=${costs ? "cost" : "stream"} d=${bars(blocks.map((_, layer) => layer).filter((layer) => layer !== at.block))} /><path class=${`${costs ? "cost" : "stream"} chosen`} d=${bars([at.block])} />
    ${kinds.map((kind) => html`<path key=${kind} class=${kind} d=${thinBars(kind)} />`)}
    ${rows.map((one, layer) => html`<g key=${layer} class=${`level ${layer === at.block ? "chosen" : ""}`} data-residual=${costs ? null : one.residual?.toPrecision(7)} data-bytes=${costs && one.residual} onClick=${() => choose({ block: layer })}><rect class="hit" x=${place(layer)} y="0" width=${each} height=${high + 24} />${!isMoving && html`<title>${said(layer)}</title>`}
      ${(each > 15 || layer === at.block || (layer % 5 === 0 && Math.abs(layer - at.block) * each > 18)) && html`<text class="small" x=${place(layer) + each / 2} y=${high + 16} text-anchor="middle">${layer}</text>`}</g>`)}</svg>`;
}
