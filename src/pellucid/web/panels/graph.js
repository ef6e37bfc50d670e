// The attribution graph of a token, which the server computes when it is asked to.

import { html, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { readGraph } from "/web/graph/read.js";
import { Graph } from "/web/graph/view.js";
import { State } from "/web/parts/show.js";
import { changed, readFields, useAnswer } from "/web/server/data.js";
import { GRAPH } from "/web/words/graph.js";

const NODES = [10, 4096, 500]; // the least, the most and the usual number

/** A button, and the graph that it asks for: of the token after `ids`. A file holds no graphs, so it has no button. */
export function AttributionGraph({ look, ids }) {
  const [dictionary, setDictionary] = useState(""), [nodes, setNodes] = useState(NODES[2]), [asked, setAsked] = useState(null);
  const transcoders = Object.entries(look.info.dictionaries ?? {}).filter(([, one]) => one.kind.includes("transcoder")).map(([name]) => name);
  const state = useAnswer(look, "/look/graph", asked), found = useMemo(() => checked(state.value), [state.value]);
  if (look.recorded) return null;
  const ask = (event) => {
    event.preventDefault();
    setAsked(changed(look, { model: look.model, ...readFields(look, ids), ...(dictionary && { dictionary }), nodes }));
  };
  return html`<h4>${GRAPH.title}</h4><p class="note">${GRAPH.buttonAbout}</p>
    <form class="bar" onSubmit=${ask}><button type="submit">${GRAPH.button}</button>
      <label>${GRAPH.count} <input type="number" min=${NODES[0]} max=${NODES[1]} value=${nodes} onChange=${(event) => { event.target.value = Math.max(NODES[0], Math.min(NODES[1], Math.round(+event.target.value) || NODES[2])); setNodes(+event.target.value); }} /></label>
      ${transcoders.length > 0 && html`<label>${GRAPH.units} <select value=${dictionary} onChange=${(event) => setDictionary(event.target.value)}>
        <option value="">${GRAPH.neurons}</option>${transcoders.map((name) => html`<option value=${name} key=${name}>${GRAPH.features(name)}</option>`)}</select></label>`}</form>
    ${asked && html`<${State} state=${state}>${found?.error && html`<p class="error" role="alert">${found.error.message}</p>`}${found?.graph && html`<${Graph} key=${found.graph.number} graph=${found.graph} />`}<//>`}`;
}

function checked(document) {
  try {
    return document && { graph: readGraph(document, GRAPH.answer) };
  } catch (error) {
    return { error };
  }
}
