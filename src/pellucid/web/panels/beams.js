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
  about: "A beam search follows several texts at once and keeps the likeliest ones. A text's score is the sum of the log-probabilities of its tokens.",
  has: (info) => info.generates,
  asks: "/look/beams",
  View,
};

function View({ look, at, choose }) {
  const count = Math.max(1, Math.min(at.beams, MOST)), state = useAnswer(look, "/look/beams", changed(look, { model: look.model, ...readFields(look, look.ids.slice(0, look.promptLength)), num_beams: count, max_tokens: 8 }));
  const found = state.value;
  return html`<div><div class="bar"><${Choose} label="beams" value=${count} low=${1} most=${MOST} onChange=${(beams) => choose({ beams })} /></div>
    <${State} state=${state}>${found && html`<div>
      <h4>The texts, the likeliest first</h4><ol class="found">
        ${found.texts.map((one) => html`<li key=${one.node}><span class="piece">${shown(one.text)}</span> <span class="num">${number(one.score)}</span></li>`)}
        </ol>
      <h4>The tree of candidates, with their scores</h4>
      <div class="scroll" role="region" aria-label="the tree of the search" tabindex="0"><ul class="beam-tree">${children(found.tree, 0).map((node) => html`<${Branch} key=${node.id} node=${node} tree=${found.tree} />`)}</ul></div></div>`}<//></div>`;
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
