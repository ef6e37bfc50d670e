// tokenize: how the text became tokens.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useAnswer } from "/web/server/data.js";
import { More, State } from "/web/parts/show.js";
import { number, shown } from "/web/parts/text.js";

const MOST_TEXT = 4000; // characters whose merges are shown

export const tokens = {
  id: "tokens",
  title: "Tokens",
  about: "The tokenizer cuts the text into pieces of its vocabulary. The model sees the numbers of the pieces and nothing else.",
  has: () => true,
  View,
};

function View({ look }) {
  const [open, setOpen] = useState(0);
  const state = useAnswer(look, "/look/tokenize", look.text ? { model: look.model, text: look.text.slice(0, MOST_TEXT) } : null);
  const found = state.value, before = found?.pre_tokens ?? [], one = before[Math.min(open, before.length - 1)];
  return html`<div>
    ${look.source && html`<h4>The source</h4><ol class="pieces" aria-label="tokens of the source">
      <${More} items=${look.source.pieces} first=${200} name="tokens" render=${(piece, at) => html`<li key=${at}><span class="piece">${shown(piece)}</span><span class="id">${look.source.ids[at]}</span></li>`} />
    </ol><h4>The answer</h4>`}
    <ol class="pieces" aria-label="tokens of the text that is read">
      <${More} items=${look.pieces} first=${200} name="tokens" render=${(piece, at) => html`
        <li key=${at} class=${at < look.promptLength ? "" : "made"}><span class="piece">${shown(piece)}</span><span class="id">${look.ids[at]}</span></li>`} />
    </ol>
    ${look.text && html`<${State} state=${state}>${found && html`
      <h4>How a word becomes pieces</h4>
      <p class="note">First the text is split into words and signs (pre-tokens). Then each of them becomes pieces by itself. Choose one:</p>
      <div class="tokens" role="group" aria-label="pre-tokens"><${More} items=${before} first=${80} name="pre-tokens" render=${(part, at) => html`
        <button type="button" class="token" key=${at} aria-pressed=${at === open} onClick=${() => setOpen(at)}>${shown(part.text)}</button>`} /></div>
      ${one && html`<${Merges} how=${one.how} />`}`}<//>`}</div>`;
}

/** The pieces of a pre-token after all merges, each with those that it was made of. */
export function trees({ symbols, merges }) {
  const nodes = symbols.map((text, at) => ({ text, at, parts: [] }));
  for (const { at, merged, rank, score } of merges) {
    const i = nodes.findIndex((one) => one.at === at);
    if (i >= 0) nodes.splice(i, 2, { text: merged, at, value: rank ?? score, parts: [nodes[i], nodes[i + 1]].filter(Boolean) });
  }
  return nodes;
}

function Tree({ node }) {
  return html`<li><span class="piece">${shown(node.text)}</span>${node.value !== undefined && html`<span class="id">${node.value}</span>`}
    ${node.parts.length > 0 && html`<ul>${node.parts.map((part, at) => html`<${Tree} key=${at} node=${part} />`)}</ul>`}</li>`;
}

function Merges({ how }) {
  if (!how) return html`<p class="note">An added token: the tokenizer finds it before anything else.</p>`;
  if (how.merges?.length) {
    return html`<div><p class="note">${how.merges.length} merges: two pieces become one. The numbers are ${how.merges[0].rank === undefined
      ? "the scores of the pieces: the highest comes first" : "the ranks of the merges: the lowest comes first"}.</p>
      <div class="scroll" role="region" aria-label="a wide part that scrolls" tabindex="0"><ul class="tree">${trees(how).map((node, at) => html`<${Tree} key=${at} node=${node} />`)}</ul></div></div>`;
  }
  if (how.lattice?.length) {
    const best = new Set((how.best ?? []).map((one) => JSON.stringify(one)));
    return html`<table class="plain"><caption>all pieces that fit, with their scores; the best path is marked</caption><tbody>
      ${how.lattice.map((one, at) => html`
      <tr key=${at} class=${best.has(JSON.stringify(one)) ? "best" : ""}><td class="num">${one.at}</td><td>${shown(one.piece)}</td><td class="num">${number(one.score)}</td></tr>`)}</tbody></table>`;
  }
  if (how.tries?.length) {
    return html`<table class="plain"><caption>the longest piece that fits is taken</caption><tbody>${how.tries.map((one, at) => html`
      <tr key=${at}><td class="num">${one.at}</td><td>${one.tried.map(shown).join(", ")}</td><td>${shown(one.found ?? "")}</td></tr>`)}</tbody></table>`;
  }
  return html`<p class="note">${how.unknown ? shown(how.unknown) : "The vocabulary has the whole word: nothing is merged."}</p>`;
}
