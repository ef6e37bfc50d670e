// The form: the text that the model continues, or the chat, and the settings of the sampler.

import { html, useEffect, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Chat } from "/web/page/chat.js";
import { ClassLink } from "/web/page/lesson.js";
import { counted } from "/web/parts/text.js";
import { LIMITS } from "/web/state/address.js";

const ENDS = { stop: "The model ended the text.", time: "The time limit ended the text." };
const ANSWER = 200; // tokens that an answer of a chat may have at least
const FIELDS = [["most tokens", "max_tokens", 1], ["temperature", "temperature", 0.05], ["top-k (0: all)", "top_k", 1], ["top-p", "top_p", 0.01],
  ["seed", "seed", 1]];

/** How a text ended. `made` is its last part; where that is shorter than the settings allow, the context ended it. */
function endOf(finish, made, count) {
  if (finish !== "length" || !made) return ENDS[finish] ?? "";
  const tokens = (n) => `${counted(n)} ${n === 1 ? "token" : "tokens"}`;
  return made.count < made.form.max_tokens ? `The text ended at the limit of the context: ${tokens(count)}.` : `The text ended at the limit of ${tokens(made.count)}.`;
}

/** What the text was made with, where that is not what the picture shows: edits of then and of now. */
function othersOf(then, now) {
  if (JSON.stringify(then) === JSON.stringify(now)) return "";
  if (!then.length) return "The text was made without the changes. The picture shows the changes; press Run for the text with them.";
  if (!now.length) return "The text was made with changes. The picture shows none; press Run for the text without them.";
  return "The text was made with other changes. The picture shows the changes of now; press Run for the text with them.";
}

/**
 * `on` are the actions: {run, step, stop}; `chat` is what useChat returns; `made` is the last part of the text, which has
 * `count` tokens, and `edits` are the changes of now.
 */
export function Form({ info, form, setForm, on, chat, running, error, made, count, edits, finish, notices, link, classLink, offer, dropped }) {
  const set = (part) => setForm({ ...form, ...part }), isChat = form.chat && info.chat;
  const [label, placeholder] = info.encoder.length ? ["Source", "Write the text that the model answers, such as a text to translate"]
    : info.generates ? ["Text to continue", "Write the beginning of a text"] : ["Sentence", "Write a sentence"];
  const submit = (event) => {
    event.preventDefault();
    if (!running) on.run();
  };
  const toggle = info.chat && html`<button type="button" aria-pressed=${isChat} disabled=${running} title="talk to the model in messages"
    onClick=${() => set({ chat: !form.chat, ...(!form.chat && { max_tokens: Math.max(form.max_tokens, ANSWER) }) })}>Chat</button>`;
  const others = info.generates && made && !running ? othersOf(made.edits, edits) : "", copy = html`<${CopyLink} link=${running ? null : link} />`;
  return html`<section class="write" aria-label="write a text"><h2 class="hidden">${isChat ? "Chat" : "Text"}</h2>
    ${isChat ? html`<${Chat} chat=${chat} running=${running} onStop=${on.stop} onSend=${(text) => chat.send(text, form)}>${toggle}${copy}<//>`
      : html`<form class="prompt-line" onSubmit=${submit} noValidate>
      <label for="prompt" class="hidden">${label}</label>
      <textarea id="prompt" rows=${Math.min(6, 1 + form.text.split("\n").length - 1 + Math.floor(form.text.length / 90))} value=${form.text} spellcheck="false" dir="auto" placeholder=${placeholder} onInput=${(event) => set({ text: event.target.value })}
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea>
      <span class="run"><button type="submit" class="main" disabled=${running || !form.text} title="Ctrl+Enter">${info.generates ? "▶ Run" : "▶ Read"}</button>
        ${info.generates && html`<button type="button" disabled=${running || !form.text} onClick=${on.step} title="make one token">Step</button>`}
        ${info.generates && html`<button type="button" disabled=${!running} onClick=${on.stop}>Stop</button>`}${toggle}${copy}</span></form>`}
    <div class="under">${info.generates && html`<${Settings} form=${form} set=${set} />`}${classLink && !running && html`<${ClassLink} link=${classLink} />`}<p class="note" role="status">${running ? "" : endOf(finish, made, count)}</p></div>
    ${offer && !running && html`<p class="offer" role="status">This link describes a text and a view of it. <button type="button" class="main" onClick=${offer}>Make the text again</button>
      </p>`}
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    ${dropped > 0 && html`<p class="note" role="status">The page skipped the values of ${dropped} steps because it was slower than the model. The text is complete.</p>`}
    ${!running && notices.map((one) => html`<p class="note" role="status" key=${one}>${one}</p>`)}
    ${others && html`<p class="note" role="status">${others}</p>`}
  </section>`;
}

function Settings({ form, set }) {
  return html`<details class="settings"><summary>Settings: temperature ${form.temperature}, ${form.max_tokens} tokens, seed ${form.seed}</summary><div class="options">
    ${FIELDS.map(([label, key, step, [low, high] = LIMITS[key]]) => html`
    <label key=${key}>${label} <input type="number" min=${low} max=${high} step=${step} value=${form[key]}
      onChange=${(event) => { event.target.value = Math.max(low, Math.min(high, +event.target.value || low)); set({ [key]: +event.target.value }); }} />
      </label>`)}
  </div></details>`;
}

/** A link to the view, to be sent to others. */
function CopyLink({ link }) {
  const [said, setSaid] = useState(null), isOld = said && (!link || link()[0] !== said.of);
  useEffect(() => {
    if (isOld) setSaid(null); // the notice is about another view
  }, [isOld]);
  const copy = () => {
    const [text, isWhole] = link(), say = (what) => setSaid({ what, of: text }), refused = () => say("The browser does not allow copying: copy the address of the page.");
    const copied = () => say(isWhole ? "Link copied." : "Link copied. It does not hold all of the text or of the changes.");
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(copied, refused);
    else refused();
  };
  return html`<button type="button" disabled=${!link} onClick=${copy} title="copy a link to this view">Link</button><span class="note" role="status">${said && !isOld ? said.what : ""}</span>`;
}
