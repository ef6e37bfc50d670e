// The marks of nodes: one shape for each kind, drawn around (0, 0).

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { KINDS } from "/web/words/graph.js";

const SHAPES = {
  feature: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z", neuron: "M0 -5L5 4H-5z", head: "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
  error: "M0 -5.2L5.2 0L0 5.2L-5.2 0z", embedding: "M-4.2 -4.2h8.4v8.4h-8.4z", position: "M-1.6 -5.5h3.2v11h-3.2z", logit: "M-7 -4h14v8h-14z",
  group: "M-5 -7h10a4 4 0 0 1 4 4v6a4 4 0 0 1 -4 4h-10a4 4 0 0 1 -4 -4v-6a4 4 0 0 1 4 -4z", other: "M-4.5 -2.6L0 -5.2L4.5 -2.6V2.6L0 5.2L-4.5 2.6z",
};

export function shapeOf(kind) {
  return SHAPES[kind];
}

/** The kinds that some nodes have, with their shapes. */
export function Legend({ nodes, label }) {
  const kinds = Object.keys(SHAPES).filter((kind) => nodes.some((one) => one.kind === kind));
  return html`<ul class="legend graph-legend" aria-label=${label}>${kinds.map((kind) => html`<li key=${kind}><svg class="graph-svg" width="16" height="14" viewBox="-8 -7 16 14" aria-hidden="true">
    <path class=${`shape ${kind}`} d=${SHAPES[kind]} /></svg>${KINDS[kind][1]}</li>`)}</ul>`;
}
