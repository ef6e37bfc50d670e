// beams: a search that keeps several texts, and the tree of what it considered.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { changed, readFields, useAnswer } from "/web/server/data.js";
import { Choose, State } from "/web/parts/show.js";
import { nameOf, number, shown, spaced } from "/web/parts/text.js";

const MOST = 8;
const STATES = { running: "still growing", finished: "ended", extended: "continued", pruned: "dropped" };

export const beams = {
  id: "beams",
  title: "Beams",
  about: "A beam search follows several texts at once and keeps those whose tokens have the largest sum of log-probabilities. Texts that have ended are compared by a score that does not prefer short texts.",
  has: (info) => info.generates,
  asks: "/look/beams",
  View,
};

function View({ look, at, choose }) {
  const count = Math.max(1, Math.min(at.beams, MOST)), state = useAnswer(look, "/look/beams", changed(look, { model: look.model, ...readFields(look, look.ids.slice(0, look.promptLength)), num_beams: count, max_tokens: 8 }));
  const found = state.value;
  return html`<div><div class="bar"><${Choose} label="beams" value=${count} low=${1} most=${MOST} onChange=${(beams) => choose({ beams })} /></div>
    <${State} state=${state}>${found && html`<div>
      <h4>The texts, the best score first</h4>
      <table class="plain"><thead><tr><th scope="col">text</th>${["tokens", "sum of log-probabilities", "score"].map((one) => html`<th scope="col" class="num" key=${one}>${one}</th>`)}</tr></thead>
        <tbody>${found.texts.map((one) => html`<${Found} key=${one.node} text=${one} node=${found.tree.find(({ id }) => id === one.node)} />`)}</tbody></table>
      <p class="note">The score is ${scoreOf(found.length_penalty)}.</p>
      <h4>The tree of candidates, with the sum of log-probabilities of each</h4>
      <div class="scroll" role="region" aria-label="the tree of the search" tabindex="0"><ul class="beam-tree">${children(found.tree, 0).map((node) => html`<${Branch} key=${node.id} node=${node} tree=${found.tree} />`)}</ul></div></div>`}<//></div>`;
}

/** A text that was found, beside the sum of its last token's `node`. */
function Found({ text, node }) {
  return html`<tr><th scope="row"><span class="piece">${shown(text.text)}</span></th><td class="num">${node ? node.step + 1 : ""}</td><td class="num">${number(node?.score)}</td><td class="num">${number(text.score)}</td></tr>`;
}

/** What a score is, in words. Files of earlier versions do not say the penalty. */
function scoreOf(penalty = 1) {
  if (penalty === 0) return "the sum of log-probabilities";
  return `the sum of log-probabilities divided by the number of tokens${penalty === 1 ? "" : ` to the power of ${penalty}, which the model's file recommends`}`;
}

function children(tree, id) {
  return tree.filter((one) => one.parent === id && one.id > id); // a file may hold a circle
}

function Branch({ node, tree }) {
  const after = children(tree, node.id);
  return html`<li class=${node.state}><span class="piece">${shown(nameOf(node))}</span> <span class="num">${number(node.score)}</span>${" "}
    <span class="id">${STATES[node.state] ?? node.state}${node.why ? `: ${spaced(node.why)}` : ""}</span>
    ${after.length > 0 && html`<ul>${after.map((one) => html`<${Branch} key=${one.id} node=${one} tree=${tree} />`)}</ul>`}</li>`;
}
