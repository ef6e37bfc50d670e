// Where the time of a step goes, beside what the machine can do at most.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { bytes, operationsOf, shortName, titleOf } from "/web/picture/graph.js";
import { measure, useProfiles } from "/web/server/profile.js";
import { milliseconds, percent } from "/web/parts/text.js";

const MANY = 64, LEAST_SHARE = 0.001; // tokens of a large step; a share below which no digits are shown
const NUMBERS = ["operations", "ms", "bytes of weights", "rate", "of the limit"]; // columns
const BUSY = "Whatever else the machine does makes the times longer and less even: measure again to see how much they vary.";

export function Timings({ model, info }) {
  const { steps, last } = useProfiles(model), state = steps[last] ?? {}, found = state.value;
  const button = (tokens, text) => html`<button type="button" disabled=${!!state.waiting} onClick=${() => measure(model, tokens)}>${text}</button>`;
  return html`<div><div class="bar">${info.generates && button(1, "Measure one token")}${button(MANY, `Measure a step of ${MANY} tokens`)}</div>
    <p class="note">Other requests wait for some tenths of a second during the measurement. ${BUSY}</p>
    ${state.waiting && html`<p class="empty" role="status">Measuring …</p>`}
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    ${found && html`<${Measured} found=${found} info=${info} tokens=${last} />`}</div>`;
}

/** What an operation is known by: its stage, of several in one the first, and its kernel. */
function keyOf(stage, kernel) {
  return `${stage.split("+")[0]} ${kernel}`;
}

/** Bytes of weights that a step reads, by the keys of operations: sums over all blocks. */
function bytesByKey(info) {
  const found = new Map(), add = ({ name, stage, kernel, bytes: size }) => {
    const key = keyOf(stage ?? shortName(name), kernel);
    found.set(key, (found.get(key) ?? 0) + size);
  };
  info.blocks.forEach((_, layer) => operationsOf(info, layer).forEach(add));
  info.graph?.rest.forEach(add);
  return found;
}

function Measured({ found, info, tokens }) {
  const { operations } = found, most = Math.max(...operations.map((one) => one.seconds), 1e-12), sizes = bytesByKey(info),
    stages = operations.map((one) => one.stage);
  const sizeOf = (one) => sizes.get(keyOf(one.stage, one.kernel)) ?? 0, isTwice = new Set(stages).size < stages.length,
    size = tokens === 1 ? operations.reduce((sum, one) => sum + sizeOf(one), 0) : 0;
  return html`<div><p role="status">${said(found)} ${shareOfWeights(found, operations.filter(sizeOf), size)}</p>
    <div class="scroll" role="region" aria-label="times of all operations" tabindex="0"><table class="plain timings">
      <caption>“operations” is how many operations of a stage the step has, such as one in each block; times and bytes are sums over them.
        ${isTwice && " A stage whose blocks use different kernels has a row for each kernel."}</caption>
      <thead><tr><th scope="col">stage</th><th scope="col">kernel</th>
        ${NUMBERS.map((one) => html`<th scope="col" class="num" key=${one}>${one}</th>`)}</tr></thead>
      <tbody>${operations.map((one) => html`<tr key=${one.stage + one.kernel}><th scope="row">${titleOf(one.stage)}</th>
        <td class="id">${one.kernel}</td><td class="num">${one.count}</td>
        <td class="num time"><span class="filled" style=${{ width: `${(100 * one.seconds) / most}%` }}></span><span>${milliseconds(one.seconds)}</span></td>
        <td class="num">${sizeOf(one) ? bytes(sizeOf(one)) : ""}</td>
        <td class="num">${one.rate.replace(/^0\.0 /, "< 0.1 ")}</td><td class="num">${shareOf(one.share)}</td></tr>`)}
      </tbody></table></div></div>`;
}

function shareOf(share) {
  if (share === null) return "";
  return share < LEAST_SHARE ? `< ${100 * LEAST_SHARE} %` : percent(share);
}

function said({ what, seconds, repetitions, read_bytes_per_second: read, multiply_adds_per_second: multiply }) {
  const times = repetitions ? `, the median of ${repetitions} measurements` : "";
  return `${what[0].toUpperCase()}${what.slice(1)}: ${milliseconds(seconds)} ms${times}. `
    + `This machine reads up to ${(read / 1e9).toFixed(1)} GB/s of memory and multiplies up to ${(multiply / 1e9).toFixed(0)} billion times a second.`;
}

/** What the numbers say of the operations that read weights; `size` are their bytes, 0 for a step in which they do not limit. */
function shareOfWeights({ seconds, read_bytes_per_second: read }, some, size) {
  if (!some.length || !seconds) return "";
  const share = some.reduce((sum, one) => sum + one.seconds, 0) / seconds, least = size / read;
  return `The operations that read weights take ${percent(share)} of the time.${size
    ? ` To read ${bytes(size)} of weights at ${(read / 1e9).toFixed(1)} GB/s takes ${milliseconds(least)} ms.`
    : ""}`;
}
