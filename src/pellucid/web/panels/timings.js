// Where the time of a step goes, beside what the machine can do at most.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { post } from "/web/server/api.js";
import { percent } from "/web/parts/text.js";

export function Timings({ model, info }) {
  const [state, setState] = useState({}), found = state.value;
  const measure = async (tokens) => {
    setState({ waiting: true });
    try {
      setState({ value: await post("/look/profile", { model, tokens, depth: 0 }), of: model });
    } catch (error) {
      setState({ error });
    }
  };
  const most = found ? Math.max(...found.operations.map((one) => one.seconds)) : 1;
  return html`<div><div class="bar">
      ${info.generates && html`<button type="button" disabled=${state.waiting} onClick=${() => measure(1)}>Measure one token</button>`}
      <button type="button" disabled=${state.waiting} onClick=${() => measure(64)}>Measure a step of 64 tokens</button></div>
    <p class="note">Other requests wait for some tenths of a second during the measurement.</p>
    ${state.waiting && html`<p class="empty" role="status">Measuring …</p>`}
    ${state.error && html`<p class="error" role="alert">${state.error.message}</p>`}
    ${found && state.of === model && html`<div><p role="status">${found.what}: ${(1000 * found.seconds).toFixed(2)} ms. This machine reads up to ${(found.read_bytes_per_second / 1e9).toFixed(1)} GB/s of memory and multiplies up to ${(found.multiply_adds_per_second / 1e9).toFixed(0)} billion times a second.</p>
      <div class="scroll" role="region" aria-label="times of all operations" tabindex="0"><table class="bars timings"><thead><tr><th>stage</th><th>times</th><th>ms</th><th>rate</th><th>of the limit</th></tr></thead>
        <tbody>${found.operations.map((one) => html`<tr key=${one.stage + one.kernel}><th scope="row">${one.stage}</th><td class="num">${one.count}</td>
          <td><span class="filled" style=${{ width: `${(100 * one.seconds) / most}%` }}></span><span class="num">${(1000 * one.seconds).toFixed(3)}</span></td><td class="num">${one.rate}</td><td class="num">${one.share === null ? "" : percent(one.share)}</td></tr>`)}</tbody></table></div></div>`}</div>`;
}
