// The values that the picture draws: of the text that is there, read with traces, and of the tokens that come, from their stream.

import { useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array } from "/web/server/api.js";
import { numbered, useTrace } from "/web/server/data.js";
import { addedPoint, fills, firstDims, isHeadOut, jointsOf, partsOf } from "/web/picture/layout.js";

export const STRIP = 48; // components of a strip
const CHUNK = 32, LONG = 256, ROWS = 64; // tokens that are read together; tokens from which on patterns are too large to be sent
export const POOLED = 168, SIDE = 560; // rows of a small pattern of a long text, and of a large one

/** The points whose lengths are the widths of ribbons, for all blocks: {norms, parts}. */
export function streamPoints(info) {
  const norms = ["blocks.*.residual"], some = new Set();
  for (let layer = 0; layer < info.blocks.length; layer++) {
    for (const part of partsOf(info, layer)) {
      const name = addedPoint(info, layer, part);
      if (name) some.add(name.replace(/^blocks\.\d+\./, "blocks.*."));
    }
  }
  return [...norms.filter(() => info.blocks.some((_, layer) => `blocks.${layer}.residual` in info.points)), ...some];
}

/** What the stream of tokens carries with each token: the fields of the request. */
export function streamed(info, at, isLong = false) {
  if (info.notice) return {};
  const pattern = `blocks.${at.block}.attention.pattern`, table = tableOf(info, at.block), points = [];
  if ("embed" in info.points) points.push(`embed[${firstDims(info, "embed", STRIP)}]`);
  // The patterns of a long prompt would be larger than all the rest: they are read at the end.
  for (const one of isLong ? [] : [pattern, crossOf(at.block)]) if (one in info.points) points.push(`${one}[heads=${at.head}]`);
  if (table) points.push(`${table}[dims=0,${halfOf(info.points[table])}]`);
  return { points, norms: [...streamPoints(info), ...jointsOf(info, at.block).filter((name) => name in info.points)] };
}

/** The pattern of a block's attention to the source. */
const crossOf = (layer) => `blocks.${layer}.cross.pattern`;

/** The table of angles that a block rotates by, else the first; undefined without rotary positions. */
function tableOf(info, block) {
  const tables = Object.keys(info.points).filter((name) => name.startsWith("position.angles"));
  return tables.find((name) => info.angles?.[name]?.includes(block)) ?? tables[0];
}

/** The column of the first sine in a row of angles, which has all cosines before. */
function halfOf({ shape }) {
  return +(shape?.match(/(\d+)\)$/)?.[1] ?? 2) / 2;
}

/** Values of tokens that come, by point and position: of a request with `edits`, whose pattern is that of one `head`. */
export class Streamed {
  constructor({ points = [] }, edits) {
    this.rows = new Map();
    this.lengths = []; // by position: the lengths of the points of `columns`
    this.columns = new Map();
    this.edits = JSON.stringify(edits);
    this.head = +(points.map((one) => one.match(/\[heads=(\d+)\]$/)?.[1]).find(Boolean) ?? -1);
  }

  /** The points whose lengths come, in the order of the columns. */
  names(points) {
    points.forEach((name, column) => this.columns.set(name, column));
  }

  /** Keep the arrays of an event: the rows from position `first` on. */
  take({ first, arrays, norms }) {
    for (const [name, one] of Object.entries(arrays)) {
      const values = array(one), isPattern = name.endsWith(".pattern"), rows = this.rows.get(name) ?? [];
      const count = isPattern ? values.shape[1] : values.shape[0];
      for (let n = 0; n < count; n++) rows[first + n] = isPattern ? values.row(0, n) : values.row(n);
      this.rows.set(name, rows);
    }
    const lengths = norms && array(norms);
    // Points of other kinds of rows may come later for the same position.
    for (let n = 0; n < (lengths?.shape[0] ?? 0); n++) this.lengths[first + n] = merged(this.lengths[first + n], lengths.row(n));
  }

  row(name, t) {
    return this.rows.get(name)?.[t];
  }

  length(name, t) {
    return this.lengths[t]?.[this.columns.get(name)];
  }
}

/** Numbers, with those of `before` where they are NaN. */
function merged(before, numbers) {
  return before ? numbers.map((one, at) => (Number.isNaN(one) ? before[at] : one)) : numbers;
}

/** A number, or undefined where a file has only a part of the values. */
function known(value) {
  return Number.isFinite(value) ? value : undefined;
}

/** The last values that came, until those that are asked for come. `of` is what they must be about. */
function useLatest(state, of) {
  const last = useRef({});
  if (state.arrays) last.current = { of, arrays: state.arrays };
  const arrays = state.arrays ?? (last.current.of === of ? last.current.arrays : undefined);
  return { ...state, arrays, isStale: !state.arrays && !!arrays };
}

/**
 * The pattern of a head for a text, as far as it can be sent: {heads, matrix, row(t), count}, or nothing yet. In a long
 * text `heads` and `matrix` are pooled, and the rows around token `t` are whole; with `isNear` these rows are all there is.
 */
export function usePattern(look, layer, head, token, isOff = false, isNear = false) {
  const name = `blocks.${layer}.attention.pattern`, count = look.ids.length, isOn = !isOff && name in look.info.points && count > 0;
  const isLong = !look.recorded && count > LONG, from = Math.floor(Math.min(token, Math.max(count - 1, 0)) / ROWS) * ROWS;
  const views = [
    { title: "heads", point: name, pool: POOLED },
    { title: "head", point: name, head, pool: SIDE },
    { title: "rows", point: name, head, rows: [from, Math.min(from + ROWS, count)] },
  ];
  const near = `${name}[heads=${head}; tokens=${from}:${Math.min(from + ROWS, count)}]`;
  const state = useTrace(look, !isOn ? {} : isLong ? (isNear ? { points: [near] } : { views }) : { points: [name] }), { arrays } = state;
  if (!isOn || !arrays) return { state };
  if (isLong && isNear) {
    const rows = arrays[name];
    return { state, count, row: (t) => (rows && t >= from && t - from < rows.shape[1] ? rows.row(0, t - from) : undefined) };
  }
  if (isLong) {
    const { heads, head: matrix, rows } = arrays;
    return { state, heads, matrix, count, row: (t) => (t >= from && t - from < rows.shape[1] ? rows.row(0, t - from) : undefined) };
  }
  const pattern = arrays[name], [, rows, columns] = pattern.shape, values = pattern.row(Math.min(head, pattern.shape[0] - 1));
  const row = (t) => (t < rows ? values.subarray(t * columns, (t + 1) * columns) : undefined);
  return { state, heads: pattern, matrix: { shape: [1, rows, columns], values }, count: rows, row };
}

/**
 * The values of a picture whose rows are tokens `first` to `last`: functions that give what is known, else undefined.
 * With `look.isOff` nothing is asked.
 */
export function useFlow(look, at, first, last, streamedValues) {
  // The values of a trace are those that are asked for; those of a stream stand in until they come, if they have the same changes.
  const live = streamedValues?.edits === JSON.stringify(look.edits) ? streamedValues : null;
  const { info } = look, { block, head, token } = at, has = (name) => name in info.points, isOn = look.ids.length > 0 && !look.isOff;
  const from = Math.floor(first / CHUNK) * CHUNK, to = (Math.floor(last / CHUNK) + 1) * CHUNK, tokens = `tokens=${from}:${to}`;
  const joints = jointsOf(info, block), start = [info.graph?.stream, "position", "embed"].find((name) => name && has(name)) ?? "embed", text = `${look.model}|${numbered(look.ids)}|${JSON.stringify(look.edits)}|${from}|${look.source ? numbered(look.source.ids) : ""}`;
  const norms = [...streamPoints(info), ...[...joints, start].filter(has)].map((name) => `${name}[${tokens}]`);
  const sizes = useLatest(useTrace(look, isOn && norms.length ? { norms } : {}), text);
  const table = tableOf(info, block);
  const vectors = [...(has("embed") ? [`embed[${firstDims(info, "embed", STRIP)}; ${tokens}]`] : []), ...(table ? [`${table}[${tokens}]`] : [])];
  const strips = useLatest(useTrace(look, isOn && vectors.length ? { points: vectors } : {}), text);
  const pattern = usePattern(look, block, head, token, !isOn, at.view === "whole");
  const hidden = `blocks.${block}.feedforward.hidden`, neurons = useTrace(look, isOn && has(hidden) ? { points: [`${hidden}[tokens=${token}]`] } : {});
  const routes = `blocks.${block}.feedforward`, mixture = useTrace(look, isOn && has(`${routes}.experts`) ? { points: [`${routes}.experts[${tokens}]`, `${routes}.expert_weights[${tokens}]`] } : {});
  const cross = crossOf(block), toSource = useTrace(look, isOn && has(cross) ? { points: [look.recorded ? cross : `${cross}[heads=${head}; tokens=${from}:${to}]`] } : {}), crossed = toSource.arrays?.[cross];
  const { point: end, each, labels } = info.output ?? {}, part = [...(labels || !has(end) ? [] : [firstDims(info, end, STRIP)]), ...(each ? [`tokens=${token}`] : [])].join("; ");
  const output = useTrace(look, isOn && has(end) && !fills(info) ? { points: [part ? `${end}[${part}]` : end] } : {}), outputs = output.arrays?.[end];
  const scores = useTrace(look, isOn && has("project.logits") ? { points: [`project.logits[tokens=${token}]`] } : {});
  const rowOf = (arrays, name, t) => (arrays?.[name] && t >= from && t - from < arrays[name].shape[0] ? arrays[name].row(t - from) : undefined);
  const norm = (name, t) => known(rowOf(sizes.arrays, name, t)?.[0] ?? live?.length(name, t)), logits = scores.arrays?.["project.logits"]?.values, all = [sizes, strips, pattern.state, neurons, mixture, toSource, output, scores];
  /** The length of the residual stream after a block; -1 is before the first. */
  const residual = (layer, t) => (layer < 0 ? known(rowOf(sizes.arrays, start, t)?.[0]) : norm(`blocks.${layer}.residual`, t));
  return {
    residual, isStale: sizes.isStale, error: all.find((one) => one.error)?.error, isWaiting: all.some((one) => one.waiting),
    embed: (t) => rowOf(strips.arrays, "embed", t) ?? live?.row("embed", t),
    /** Cosine and sine of the first pair's angle; null without rotary positions. */
    turn: (t) => {
      const row = table && (rowOf(strips.arrays, table, t) ?? live?.row(table, t));
      return table ? row && known(row[0]) !== undefined && [row[0], row[row.length / 2]] : null;
    },
    /** Its lengths inside the block: after each part but the last. */
    inside: (t) => joints.map((name) => norm(name, t)),
    /** Its length where a part of the block adds to it. */
    into: (part, t) => {
      const before = partsOf(info, block).indexOf(part) - 1;
      return before < 0 ? residual(block - 1, t) : norm(joints[before], t);
    },
    added: (layer, part, t) => {
      const name = addedPoint(info, layer, part);
      return name && norm(name, t);
    },
    /** The weights of a token's attention; undefined also where the head is taken out. */
    pattern: (t) => (isHeadOut(look.edits, block, "attention", head) ? undefined : pattern.row?.(t) ?? (live?.head === head ? live.row(`blocks.${block}.attention.pattern`, t) : undefined)),
    /** The same of a token's attention to the tokens of the source. */
    cross: (t) => {
      if (isHeadOut(look.edits, block, "cross", head)) return undefined;
      const at = look.recorded ? t : t - from;
      if (crossed && at >= 0 && at < crossed.shape[1]) return crossed.row(look.recorded ? Math.min(head, crossed.shape[0] - 1) : 0, at);
      return live?.head === head ? live.row(cross, t) : undefined;
    },
    /** The encoder's output: a row for the text, or the row of the chosen token. */
    output: outputs?.row(outputs.shape[0] - 1),
    patterns: pattern,
    hidden: neurons.arrays?.[hidden]?.values,
    experts: (t) => {
      const [chosen, weights] = ["experts", "expert_weights"].map((one) => rowOf(mixture.arrays, `${routes}.${one}`, t));
      return chosen && Array.from(chosen, (expert, i) => [expert, weights?.[i]]);
    },
    logits: logits && known(logits[0]) === undefined ? undefined : logits,
  };
}
