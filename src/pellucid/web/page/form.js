// The form: the text that the model continues, or the chat, and the settings of the sampler.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Chat } from "/web/page/chat.js";
import { LIMITS } from "/web/state/address.js";

const ENDS = { stop: "The model ended the text.", length: "The text has as many tokens as the settings or the context allow.",
  time: "The time limit ended the text." };
const ANSWER = 200; // tokens that an answer of a chat may have at least
const FIELDS = [["most tokens", "max_tokens", 1], ["temperature", "temperature", 0.05], ["top-k (0: all)", "top_k", 1], ["top-p", "top_p", 0.01],
  ["seed", "seed", 1]];

/** `on` are the actions: {run, step, slow, stop}; `chat` is what useChat returns. */
export function Form({ info, form, setForm, on, chat, running, isSlow, error, isOfOthers, finish, notices, link, offer, dropped }) {
  const set = (part) => setForm({ ...form, ...part }), isChat = form.chat && info.chat;
  const submit = (event) => {
    event.preventDefault();
    if (!running) on.run();
  };
  const toggle = info.chat && html`<button type="button" aria-pressed=${isChat} disabled=${running} title="talk to the model in messages"
    onClick=${() => set({ chat: !form.chat, ...(!form.chat && { max_tokens: Math.max(form.max_tokens, ANSWER) }) })}>Chat</button>`;
  const copy = link && !running && html`<${CopyLink} link=${link} />`;
  return html`<section class="write" aria-label="write a text"><h2 class="hidden">${isChat ? "Chat" : "Text"}</h2>
    ${isChat ? html`<${Chat} chat=${chat} running=${running} onStop=${on.stop} onSend=${(text) => chat.send(text, form)}>${toggle}${copy}<//>`
      : html`<form class="prompt-line" onSubmit=${submit} noValidate>
      <label for="prompt" class="hidden">${info.generates ? "Text to continue" : "Sentence"}</label>
      <textarea id="prompt" rows=${Math.min(6, 1 + form.text.split("\n").length - 1 + Math.floor(form.text.length / 90))} value=${form.text} spellcheck="false" dir="auto" placeholder=${info.generates ? "Write the beginning of a text" : "Write a sentence"} onInput=${(event) => set({ text: event.target.value })}
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea>
      <span class="run"><button type="submit" class="main" disabled=${running || !form.text} title="Ctrl+Enter">${info.generates ? "▶ Run" : "▶ Read"}</button>
        ${info.generates && html`<button type="button" disabled=${running || !form.text} onClick=${on.step} title="make one token">Step</button>`}
        ${info.generates && on.slow && html`<button type="button" aria-pressed=${isSlow} disabled=${running} onClick=${on.slow} title="show the tokens again, stage by stage">Slow</button>`}
        ${toggle}${running && html`<button type="button" onClick=${on.stop}>Stop</button>`}${copy}</span></form>`}
    ${info.generates && html`<${Settings} form=${form} set=${set} />`}
    ${offer && !running && html`<p class="note" role="status">This link describes a text. <button type="button" onClick=${offer}>Make the text again</button>
      </p>`}
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    <p class="note" role="status">${running ? "" : ENDS[finish] ?? ""}</p>
    ${dropped > 0 && html`<p class="note" role="status">The page skipped the values of ${dropped} steps because it was slower than the model. The text is complete.</p>`}
    ${!running && notices.map((one) => html`<p class="note" role="status" key=${one}>${one}</p>`)}
    ${isOfOthers && !running && html`<p class="note"
      role="status">The text was made with other changes. The picture shows the changes of now; press Run for the text with them.</p>`}
  </section>`;
}

function Settings({ form, set }) {
  return html`<details><summary>Settings: temperature ${form.temperature}, ${form.max_tokens} tokens, seed ${form.seed}</summary><div class="options">
    ${FIELDS.map(([label, key, step, [low, high] = LIMITS[key]]) => html`
    <label key=${key}>${label} <input type="number" min=${low} max=${high} step=${step} value=${form[key]}
      onChange=${(event) => { event.target.value = Math.max(low, Math.min(high, +event.target.value || low)); set({ [key]: +event.target.value }); }} />
      </label>`)}
  </div></details>`;
}

/** A link to the view, to be sent to others. */
function CopyLink({ link }) {
  const [said, setSaid] = useState("");
  const copy = () => {
    const [text, isWhole] = link(), refused = () => setSaid("The browser does not allow copying: copy the address of the page.");
    const copied = () => setSaid(isWhole ? "Link copied." : "Link copied. It does not hold all of the text or of the changes.");
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(copied, refused);
    else refused();
  };
  return html`<button type="button" onClick=${copy} title="copy a link to this view">Link</button><span class="note" role="status">${said}</span>`;
}
