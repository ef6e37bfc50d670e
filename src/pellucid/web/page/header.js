// The bar at the top: the model, its facts, and what the page can do beside writing.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { hasKey, setKey } from "/web/server/api.js";
import { counted } from "/web/parts/text.js";

/** `tools` are the buttons of the picture: {name, label, pressed, onClick}. */
export function Header({ models, model, onModel, info, file, onFile, onClose, tools = [] }) {
  return html`<header><button type="button" class="skip" onClick=${toPicture}>To the picture</button><h1>Pellucid</h1>
    ${file && html`<span class="facts">${file}</span>`}${onClose && html`<button type="button" onClick=${onClose}>close the file</button>`}
    ${models && !file && html`<label class="model">Model <select value=${model} onChange=${(event) => onModel(event.target.value)}>${models.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select></label>`}
    ${info && html`<span class="facts">${info.family} · ${info.blocks.length} blocks · D = ${counted(info.width)} · V = ${counted(info.vocabulary)}${info.facts?.parameters ? ` · ${(info.facts.parameters / 1e6).toPrecision(3)} M weights` : ""}</span>`}
    <span class="tools">${tools.map(({ name, label, pressed, onClick }) => html`<button type="button" key=${name} title=${label} aria-pressed=${pressed} onClick=${onClick}>${name}</button>`)}
    <label class="file" title="open a recorded run or an attribution graph">Open <input type="file" class="hidden" aria-label="open a recorded run or an attribution graph" accept=".run,.safetensors,.json" onChange=${(event) => { const [one] = event.target.files; event.target.value = ""; if (one) onFile(one); }} /></label>
    ${hasKey() && html`<button type="button" class="quiet" onClick=${() => { setKey(""); location.reload(); }}>forget the key</button>`}</span></header>`;
}

/** The keyboard goes to the chosen weight, or to the chosen token. */
function toPicture() {
  (document.querySelector(".picture-box .badge") ?? document.querySelector(".picture-box .token.chosen, .picture-box button"))?.focus();
}

export function Key({ onKey }) {
  const [value, setValue] = useState(""), [wrong, setWrong] = useState("");
  return html`<form class="key" onSubmit=${(event) => { event.preventDefault(); try { setKey(value.trim()); onKey(); } catch (one) { setWrong(one.message); } }}>
    <label>Key <input type="password" autocomplete="off" value=${value} onInput=${(event) => setValue(event.target.value)} /></label><button type="submit" class="main">Use this key</button>${wrong && html`<span class="error" role="alert">${wrong}</span>`}</form>`;
}
