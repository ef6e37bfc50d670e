// A class: a link that opens one run for many, read only, with questions that the page asks and checks.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { MOST_QUESTIONS, questionOf } from "/web/state/address.js";

/** The questions of a text with one in each line: "question = answer". */
function read(text) {
  return text.split("\n").map((line) => {
    const at = line.lastIndexOf("=");
    return at > 0 ? questionOf({ ask: line.slice(0, at).trim(), answer: line.slice(at + 1).trim() }) : null;
  }).filter(Boolean).slice(0, MOST_QUESTIONS);
}

/** The teacher's part: own questions, and the link. `link(questions)` is [address, whether it says all of the view]. */
export function ClassLink({ link }) {
  const [isOpen, setOpen] = useState(false), [text, setText] = useState(""), [said, setSaid] = useState(""), questions = read(text), lines = text.split("\n").filter((one) => one.trim()).length;
  const copy = () => {
    const [address, isWhole] = link(questions), done = `Link copied, with ${questions.length} of your own questions.${isWhole ? "" : " It does not hold all of the text or of the changes."}`;
    if (navigator.clipboard) navigator.clipboard.writeText(address).then(() => setSaid(done), () => setSaid(address));
    else setSaid(address);
  };
  return html`<details class="class-link" onToggle=${(event) => setOpen(event.currentTarget.open)}><summary>For a class</summary>${isOpen && html`<p class="note">A link that opens this run with the same numbers for everybody, read only. The page asks questions about this step and checks the answers with its own numbers. Your own questions, one in a line:</p>
    <label>question = answer <textarea rows="3" value=${text} placeholder="What is the capital of France? = Paris" onInput=${(event) => setText(event.target.value)}></textarea></label>
    ${lines > questions.length && html`<p class="note" role="status">${lines - questions.length} ${lines - questions.length === 1 ? "line is" : "lines are"} not used: a line is a question, =, and an answer; at most ${MOST_QUESTIONS}.</p>`}
    <p><button type="button" disabled=${!link} onClick=${copy}>Copy the link for a class</button> <span class="note" role="status">${said}</span></p>`}</details>`;
}

/** What a student sees in place of the form. `begin` makes the run. */
export function LessonHead({ form, model, begin, running }) {
  return html`<section class="write" aria-label="a run for a class"><p><b>A run for a class, read only.</b> <span class="note">${model} · temperature ${form.temperature} · seed ${form.seed}. Everything can be looked at from near; nothing can be changed. The questions are below the picture.</span></p>
    ${begin && !running && html`<p class="offer" role="status">Your teacher's link describes a text and a view of it. <button type="button" class="main" onClick=${begin}>Open the run</button></p>`}</section>`;
}
