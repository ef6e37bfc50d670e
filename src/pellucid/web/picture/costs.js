// What the stages cost: the bytes of weights that each reads for a token (from the plan), and the time that each takes
// (measured when asked). Both are sums over all blocks, because the server measures a stage of all blocks together.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { PARTS, outputColumn } from "/web/picture/layout.js";
import { bytes, operationsOf, shortName } from "/web/picture/graph.js";
import { measure, useProfiles } from "/web/server/profile.js";
import { MEASURES } from "/web/state/place.js";
import { milliseconds, percent } from "/web/parts/text.js";

const WITHIN = { norm: "norm", post_norm: "post_norm", residual: "add" };
const ATTEND = { ...WITHIN, output: "add", scores: "pattern", pattern: "pattern", heads: "pattern", attend: "pattern", cache: "pattern", gated: "pattern" };
const BEFORE = ["embed", "position"], AFTER = ["norm", "pick", "pool", "normalize", "output", "project"];

/** The key of the column that an operation of a model is seen in, from its short name; operations in one ("output+residual") go by the first. */
export function columnOf(name, info) {
  const [part, ...rest] = name.split("+")[0].split("."), own = rest.join(".");
  if (part === "pick" && info.generates) return "draw";
  if (!PARTS.includes(part)) return BEFORE.includes(part) ? part : AFTER.includes(part) ? outputColumn(info) : "";
  return part === "attention" ? `${part}.${ATTEND[own] ?? "qkv"}` : `${part}.${WITHIN[own] ?? "main"}`;
}

function keyOf({ id, key, part }) {
  return ["neurons", "experts", "state", "source"].includes(id) ? `${part}.main` : key;
}

function summed(pairs) {
  const found = new Map();
  for (const [key, value] of pairs) found.set(key, (found.get(key) ?? 0) + value);
  return found;
}

/** Bytes of weights for one token: {stages: by columns, blocks: [{total, parts: [[part, bytes]]}], total}. Null without a plan. */
export function bytesOf(info) {
  if (!info.graph) return null;
  const layers = info.blocks.map((_, layer) => operationsOf(info, layer).map((one) => [shortName(one.name), one.bytes]));
  const all = [...layers.flat(), ...info.graph.rest.map((one) => [one.name, one.bytes])], sum = (some) => some.reduce((whole, [, value]) => whole + value, 0);
  const partsOf = (some) => PARTS.map((part) => [part, sum(some.filter(([name]) => name.startsWith(`${part}.`)))]).filter(([, value]) => value > 0);
  const blocks = layers.map((some) => ({ total: sum(some), parts: partsOf(some) }));
  return { stages: summed(all.map(([name, value]) => [columnOf(name, info), value])), blocks, total: sum(all) };
}

/** Times of a profile by columns; `""` has the operations that no column shows. */
export function timesOf({ operations, seconds }, info) {
  return { stages: summed(operations.map((one) => [columnOf(one.stage, info), one.seconds])), total: seconds };
}

/**
 * What the picture shows of costs: {choice, note, of(column), blocks}. `of` is {value, label, width} in pixels, or undefined;
 * widths of all columns have one scale, in which the columns of `parts` have room.
 */
export function useCosts({ look, at, choose, parts }) {
  const { info } = look, measured = useProfiles(look.model).steps[1] ?? {}, known = useMemo(() => bytesOf(info), [info]);
  const choices = MEASURES.filter((one) => one === "values" || (known && (one === "bytes" || !look.recorded)));
  const kind = choices.includes(at.measure) ? at.measure : "values";
  const times = useMemo(() => measured.value && timesOf(measured.value, info), [measured.value, info]), costs = { bytes: known, time: times }[kind];
  const columns = costs ? parts.flatMap((one) => one.columns).filter((one) => costs.stages.get(keyOf(one)) > 0) : [];
  const unit = Math.min(...columns.map((one) => (one.width - 6) / costs.stages.get(keyOf(one))));
  return {
    choice: choices.length > 1 && html`<span class="measures" role="group" aria-label="what the stages show">${choices.map((one) => html`
      <button type="button" key=${one} aria-pressed=${one === kind} onClick=${() => choose({ measure: one })}>${one}</button>`)}</span>`,
    note: {
      bytes: html`<${Bytes} known=${known} info=${info} />`,
      time: html`<${Time} state=${measured} times=${times} measure=${() => measure(look.model, 1)} info=${info} />`,
    }[kind],
    isOn: kind !== "values", blocks: kind === "bytes" ? known.blocks : null,
    of: (column) => {
      const value = costs?.stages.get(keyOf(column));
      return value > 0 ? { value, label: kind === "bytes" ? bytes(value) : percentOf(value / costs.total), width: Math.max(1, value * unit) } : undefined;
    },
  };
}

/** A share with two digits: labels stand in narrow columns. */
function percentOf(share) {
  return `${+(100 * share).toPrecision(2)} %`;
}

function Bytes({ known, info }) {
  const logits = known.stages.get("logits") ?? 0;
  const share = logits > 0 ? `, ${percent(logits / known.total)} of them for the logits` : "";
  return html`<p class="note costs-note">Bytes of weights that each stage reads for one token, in all ${info.blocks.length} blocks together:${" "}
    ${bytes(known.total)}${share}.${" "}
    The bars below the picture are those of each block.</p>`;
}

function Time({ state, times, measure, info }) {
  const asks = "Time is measured when you ask for it. Other requests wait for some tenths of a second meanwhile.";
  return html`<div class="costs-note">${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    <p class="note"><span role="status">${state.waiting ? "Measuring …" : times ? said(state.value, times, info.blocks.length) : asks}</span>
    ${" "}<button type="button" disabled=${state.waiting} onClick=${measure}>${times ? "Measure again" : "Measure one token"}</button></p></div>`;
}

function said({ what, repetitions }, { stages, total }, count) {
  const rest = 1 - [...stages].reduce((sum, [key, seconds]) => sum + (key ? seconds : 0), 0) / total;
  const others = rest > 0.0005 ? `; ${percent(rest)} are in no column` : "";
  const median = repetitions ? `, the median of ${repetitions} measurements` : "";
  return `The time of ${what}: ${milliseconds(total)} ms${median}. Each stage has its share, in all ${count} blocks together${others}. `
    + "Blocks are not measured one by one: the bars below the picture are lengths of vectors.";
}
