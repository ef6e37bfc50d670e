// The form: the text that the model goes on with, and how it goes on.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { LIMITS } from "/web/state/address.js";

const ENDS = { stop: "The model ended the text.", length: "The text has as many tokens as you asked for, or as the context holds.", time: "The time limit ended the text." };
const FIELDS = [["tokens", "max_tokens", 1], ["temperature", "temperature", 0.05], ["top-k (0: all)", "top_k", 1], ["top-p", "top_p", 0.01], ["seed", "seed", 1]];

/** `on` are the actions: {run, step, slow, stop}. */
export function Form({ info, form, setForm, on, running, isSlow, error, isOfOthers, finish, notices, link, offer, dropped }) {
  const set = (part) => setForm({ ...form, ...part });
  const submit = (event) => {
    event.preventDefault();
    if (!running) on.run();
  };
  return html`<section class="write" aria-label="write a text">
    <form onSubmit=${submit} noValidate><div class="prompt-line">
      <label for="prompt" class="hidden">${info.generates ? (form.chat ? "Message" : "Text to continue") : "Sentence"}</label>
      <textarea id="prompt" rows=${Math.min(6, 1 + form.text.split("\n").length - 1 + Math.floor(form.text.length / 90))} value=${form.text} spellcheck="false" dir="auto" placeholder=${info.generates ? "Write the beginning of a text" : "Write a sentence"} onInput=${(event) => set({ text: event.target.value })}
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea>
      <span class="run"><button type="submit" class="main" disabled=${running || !form.text} title="Ctrl+Enter">${info.generates ? "▶ Run" : "▶ Read"}</button>
        ${info.generates && html`<button type="button" disabled=${running || !form.text} onClick=${on.step} title="make one token">Step</button>`}
        ${info.generates && on.slow && html`<button type="button" aria-pressed=${isSlow} disabled=${running} onClick=${on.slow} title="show the tokens again, stage by stage">Slow</button>`}
        ${running && html`<button type="button" onClick=${on.stop}>Stop</button>`}${link && !running && html`<${CopyLink} link=${link} />`}</span></div>
      ${info.generates && html`<details><summary>Settings: temperature ${form.temperature}, ${form.max_tokens} tokens, seed ${form.seed}</summary><div class="options">
        ${info.chat && html`<label><input type="checkbox" checked=${form.chat} onChange=${(event) => set({ chat: event.target.checked })} /> as a chat message</label>`}
        ${FIELDS.map(([label, key, step, [low, high] = LIMITS[key]]) => html`
          <label key=${key}>${label} <input type="number" min=${low} max=${high} step=${step} value=${form[key]} onChange=${(event) => { event.target.value = Math.max(low, Math.min(high, +event.target.value || low)); set({ [key]: +event.target.value }); }} /></label>`)}
      </div></details>`}
    </form>
    ${offer && !running && html`<p class="note" role="status">This address says how a text was made. <button type="button" onClick=${offer}>Make it again</button></p>`}
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    <p class="note" role="status">${running ? "" : ENDS[finish] ?? ""}</p>
    ${dropped > 0 && html`<p class="note" role="status">The page skipped the values of ${dropped} steps, because it was slower than the model; the text is complete.</p>`}
    ${!running && notices.map((one) => html`<p class="note" role="status" key=${one}>${one}</p>`)}
    ${isOfOthers && !running && html`<p class="note" role="status">The changes are different from those that this text was made with. The picture shows the changes of now; run again for the text.</p>`}
  </section>`;
}

/** The address of what is seen, to be sent to others. */
function CopyLink({ link }) {
  const [said, setSaid] = useState("");
  const copy = () => {
    const [text, isWhole] = link(), refused = () => setSaid("The browser does not let the page copy: copy its address.");
    const copied = () => setSaid(isWhole ? "Link copied." : "Link copied, without the parts that are too long for an address.");
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(copied, refused);
    else refused();
  };
  return html`<button type="button" onClick=${copy} title="copy a link to this view">Link</button><span class="note" role="status">${said}</span>`;
}
