// The card beside the picture: the stop of the tour, or the explanation of the stage that is chosen.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { shortName } from "/web/picture/graph.js";
import { examplesOf } from "/web/words/examples.js";
import { GLOSSARY, STAGE_WORDS } from "/web/words/glossary.js";
import { TOUR } from "/web/words/tour.js";

/** The stage that the open panel is about. */
const OF_PANEL = {
  source: "source", tokens: "tokens", embeddings: "embed", positions: "position", blocks: "add", attention: "pattern", feedforward: "neurons", experts: "experts",
    recurrent: "state",
  lens: "logits", attribution: "logits", sampling: "softmax", beams: "draw",
};

/** `onExample` runs an example of the tour. */
export function AboutCard({ look, at, choose, labels, onExample }) {
  const stop = TOUR[at.stop - 1];
  return html`<section class="card about-card" aria-label=${stop ? "the tour" : "explanation"}>${stop
    ? html`<${Stop} key=${stop.id} stop=${stop} look=${look} at=${at} choose=${choose} labels=${labels} onExample=${onExample} />`
    : html`<${Explanation} id=${stageOf(at)} />`}
    <details><summary>Words</summary><dl class="glossary">${GLOSSARY.map(([word, text]) => html`<dt key=${word}>${word}</dt><dd>${text}</dd>`)}</dl></details></section>`;
}

/** The stage of what is chosen. */
function stageOf({ point, panel, view }) {
  const short = shortName(point);
  const known = { embed: "embed", position: "position", "attention.pattern": "pattern", "attention.scores": "pattern", "cross.pattern": "source", "cross.heads": "source", "attention.heads": "pattern", "attention.q": "qkv", "attention.k": "qkv", "attention.v": "qkv", "feedforward.hidden": "neurons", "project.logits": "logits", norm: "norm" }[short];
  if (point && view !== "whole") return known ?? (short.endsWith("norm") ? "norm" : short.startsWith("feedforward") ? "neurons" : short.startsWith("recurrent") ? "state" : "add");
  return known ?? (view === "block" ? "block" : OF_PANEL[panel] ?? "text");
}

function Explanation({ id }) {
  const [title, text, todo] = STAGE_WORDS[id] ?? STAGE_WORDS.text;
  return html`<div><h3>${title}</h3><p>${text}</p><p class="todo">${todo}</p></div>`;
}

function Stop({ stop: general, look, at, choose, labels, onExample }) {
  const stop = look.info.encoder?.length ? { ...general, ...general.source } : look.info.generates ? general : { ...general, ...general.encoder };
  const [isOpen, setOpen] = useState(false), card = useRef(null), isEmpty = look.ids.length === 0, scene = { look, at, labels }, number = TOUR.indexOf(general) + 1,
    example = examplesOf(look.info).find((one) => one.id === stop.example);
  useEffect(() => {
    if (!isEmpty) choose({ point: "", dim: -1, key: -1, ...stop.at(scene) });
    card.current?.scrollIntoView({ block: "nearest" });
  }, [stop.id, isEmpty]);
  return html`<div ref=${card}><div class="bar"><h3>${number}. ${stop.title}</h3><span class="stops"><button type="button" disabled=${number === 1} onClick=${() => choose({ stop: number - 1 })}>◀ Back</button>
      ${number < TOUR.length ? html`<button type="button" class="main" onClick=${() => choose({ stop: number + 1 })}>Next ▶</button>` : html`<button type="button" class="main" onClick=${() => choose({ stop: 0 })}>End the tour</button>`}</span></div>
    ${isEmpty ? html`<p>Choose an example above, or write a sentence of your own and run it. The tour follows your text.</p>`
      : html`<p>${stop.say(scene)}</p>
      ${onExample && example && look.text !== example.form.text && html`<p><button type="button" onClick=${() => onExample(example)}>Run the example “${example.title}”</button></p>`}
      <p class="todo">${stop.todo}</p>
    ${stop.question && html`<p><b>${stop.question}</b> ${isOpen ? stop.answer(scene) : html`<button type="button" class="quiet" onClick=${() => setOpen(true)}>answer</button>`}</p>`}`}</div>`;
}
