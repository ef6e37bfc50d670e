// Questions about the step that is drawn, for a class. The page knows the answers: they are numbers of its picture.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { strongestOf } from "/web/parts/numbers.js";
import { counted, percent, shown } from "/web/parts/text.js";

const ORDER = ["reads", "first", "kept", "word"];

/** The questions that the values at hand can answer: [{id, ask, options, isRight(answer), says}]. Without options the answer is written. */
function questionsOf({ at, text, flow, lens, kept, settings, why, nameOf, answer }) {
  const label = (t) => shown(text.labels[t] ?? ""), options = text.labels.slice(0, at.token + 1).map((_, t) => [String(t), `${t}: ${label(t)}`]), found = [], name = shown(nameOf(answer) ?? "");
  const row = flow.pattern(at.token), [[best, weight]] = row ? strongestOf(row.subarray(0, at.token + 1), 1) : [[]];
  if (best !== undefined) found.push({ id: "reads", ask: `Which token does ${label(at.token)} read most in head ${at.head} of block ${at.block}?`, options, isRight: (one) => one === String(best), says: `${label(best)}: ${percent(weight)}` });
  const first = lens?.rows.findIndex((one, layer) => lens.rows.slice(layer).every((later) => later?.rank === 1)) ?? -1;
  if (first >= 0) found.push({ id: "first", ask: `From which block on is ${name} the token that the model would say?`, isRight: (one) => +one === first, says: `from block ${first} on its rank is 1` });
  if (kept) found.push({ id: "kept", ask: `How many tokens can be drawn at temperature ${settings.temperature}, top-k ${settings.topK || "all"} and top-p ${settings.topP}?`, isRight: (one) => +one === kept, says: `${counted(kept)} ${kept === 1 ? "token is" : "tokens are"} left after the cuts` });
  const least = why?.found && [...why.found.tokens].sort((a, b) => a.probability - b.probability)[0];
  if (least) found.push({ id: "word", ask: `Without which token is ${name} least likely?`, options, isRight: (one) => one === String(least.token), says: `without ${label(least.token)} it has ${percent(least.probability)}` });
  return found;
}

/** Spaces, case and the dot for a space do not matter. */
const plain = (text) => text.trim().replace(/^·/, "").replace(/\s+/g, " ").toLocaleLowerCase();

/** The questions of the page, then those of the teacher: [{ask, answer}]. The place that they ask about stays what the link says. */
export function Questions({ own, ...step }) {
  const [answers, setAnswers] = useState({}), [kept, setKept] = useState({}), now = questionsOf(step);
  // What a question asks about is the step of the link: it does not follow the reader through the picture.
  const fresh = now.filter((one) => !(one.id in kept));
  if (fresh.length) setKept({ ...kept, ...Object.fromEntries(fresh.map((one) => [one.id, one])) });
  const all = [...ORDER.flatMap((id) => kept[id] ?? []), ...own.map(({ ask, answer }, n) => ({ id: `own${n}`, ask, isRight: (one) => plain(one) === plain(answer), says: answer }))];
  const right = all.filter((one) => answers[one.id] !== undefined && one.isRight(answers[one.id])).length;
  const give = (id) => (event) => {
    event.preventDefault();
    setAnswers({ ...answers, [id]: new FormData(event.currentTarget).get("answer") ?? "" });
  };
  return html`<section class="questions" aria-label="questions"><h3>Questions</h3><ol>${all.map((one) => {
    const given = answers[one.id], isRight = given !== undefined && one.isRight(given);
    return html`<li key=${one.id} data-question=${one.id}><form onSubmit=${give(one.id)}><label>${one.ask} ${one.options
      ? html`<select name="answer"><option value="">…</option>${one.options.map(([value, title]) => html`<option key=${value} value=${value}>${title}</option>`)}</select>` : html`<input name="answer" autocomplete="off" />`}</label> <button type="submit">Check</button>
      <span role="status" class=${isRight ? "answer" : ""}>${given === undefined ? "" : isRight ? ` Right: ${one.says}.` : " Not yet: look at the picture again."}</span></form></li>`;
  })}</ol><p class="note" role="status">${right} of ${all.length} right.</p></section>`;
}
