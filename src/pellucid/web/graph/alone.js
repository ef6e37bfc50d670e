// A file that shows one graph and nothing else (bundle.py): the graph is data in it.

import { html, render } from "/web/vendor/htm-preact-3.1.1.module.js";
import { GraphFile } from "/web/graph/file.js";
import { parseGraph } from "/web/graph/read.js";
import { Guarded } from "/web/parts/show.js";

async function start() {
  const held = document.getElementById("graph"), app = document.getElementById("app");
  try {
    const packed = Uint8Array.from(atob(held.textContent.trim()), (one) => one.charCodeAt(0));
    const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text(), graph = parseGraph(text, held.dataset.name);
    app.replaceChildren();
    render(html`<${Guarded} body=${() => html`<${GraphFile} graph=${graph} />`} />`, app);
  } catch (error) {
    app.textContent = error.message;
  }
}

start();
