// The page of a graph that a file holds.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Graph } from "/web/graph/view.js";
import { spaced } from "/web/parts/text.js";
import { GRAPH } from "/web/words/graph.js";

const MOST = 2000; // characters of the prompt

export function GraphFile({ graph, error }) {
  return html`<main><section aria-labelledby="graph-title"><h2 id="graph-title">${GRAPH.title}</h2>${error && html`<p class="error" role="alert">${error.message}</p>`}
    <p class="graph-prompt" dir="auto">${spaced(graph.tokens.join("").slice(0, MOST))}</p><p class="note">${GRAPH.about}</p><${Graph} graph=${graph} /></section></main>`;
}
