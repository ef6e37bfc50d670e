// The chat view: the text as messages. What is written is a text of the page like any other, so the picture follows it.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { joined } from "/web/parts/text.js";

/**
 * The messages of a chat, [{role, content}], and what to send next. `run` is the text of the page; while it is the answer to the
 * last message, its tokens are the answer. `send(form)` writes an answer to `form.messages`,
 * or to `form.text`; `forget()` clears the page's text.
 */
export function useChat(model, run, send, forget) {
  const [talk, setTalk] = useState([]), answer = useRef(""), form = run.made[0]?.form;
  useEffect(() => setTalk([]), [model]);
  const isOfText = form?.chat && !talk.length, isMine = isOfText || (talk.length > 0 && form?.talk === talk), path = run.tree.path(run.leaf);
  if (isMine) answer.current = joined(path);
  const asked = isOfText ? [{ role: "user", content: form.text }] : talk;
  return {
    messages: asked.length ? [...asked, { role: "assistant", content: answer.current }] : [],
    clear: () => {
      setTalk([]);
      forget();
    },
    send: (text, settings) => {
      const past = asked.length ? [...asked, { role: "assistant", content: answer.current }] : [], next = [...past, { role: "user", content: text }];
      answer.current = "";
      setTalk(next);
      // A message alone is what a text of the form is too: an address can hold it.
      send({ ...settings, chat: true, text, talk: next, ...(past.length > 0 && { messages: next }) });
    },
  };
}

export function Chat({ chat, running, onStop, onSend, children }) {
  const [draft, setDraft] = useState(""), log = useRef(null), { messages } = chat, last = messages.at(-1)?.content.length ?? 0;
  useEffect(() => {
    log.current.scrollTop = log.current.scrollHeight;
  }, [messages.length, last, running]);
  const submit = (event) => {
    event.preventDefault();
    if (running || !draft.trim()) return;
    onSend(draft);
    setDraft("");
  };
  return html`<div class="chat"><div class="messages" ref=${log} role="log" aria-label="conversation" tabindex="0">
    ${messages.length === 0 && html`<p class="empty">Write a message. The model answers, and the picture below shows the last answer token by token.</p>`}
      ${messages.map(({ role, content }, i) => html`<div key=${i} class=${`message ${role}`}><span class="who">${role === "user" ? "You" : "Model"}</span>
        <p dir="auto">${content}${running && i === messages.length - 1 && html`<span class="cursor" aria-hidden="true"></span>`}</p>
        ${role === "assistant" && content && !(running && i === messages.length - 1) && html`<${Copy} text=${content} />`}</div>`)}</div>
    <form class="prompt-line" onSubmit=${submit}><label class="hidden" for="message">Message</label>
      <textarea id="message" rows=${Math.min(6, draft.split("\n").length)} value=${draft} dir="auto" placeholder="Write a message"
        onInput=${(event) => setDraft(event.target.value)}
        onKeyDown=${(event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event)}></textarea>
      <span class="run"><button type="submit" class="main" disabled=${running || !draft.trim()} title="Enter; Shift+Enter begins a new line">Send</button>
        <button type="button" disabled=${!running} onClick=${onStop}>Stop</button>
        <button type="button" disabled=${running || !messages.length} onClick=${chat.clear}>New chat</button>${children}</span></form></div>`;
}

function Copy({ text }) {
  const [said, setSaid] = useState("");
  const copy = () => {
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => setSaid("Copied."), () => setSaid("The browser does not allow copying."));
    else setSaid("The browser does not allow copying.");
  };
  return html`<span class="copy"><button type="button" class="quiet" onClick=${copy}>copy</button> <span class="note" role="status">${said}</span></span>`;
}
