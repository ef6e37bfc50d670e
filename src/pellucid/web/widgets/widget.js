// What a notebook shows through anywidget: a component of the page, chosen by the trait `kind`, of the trait `data`
// (integrations/widgets.py). All of it is in this one script.

import { html, render as draw, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { readGraph } from "/web/graph/read.js";
import { Graph } from "/web/graph/view.js";
import { Text } from "/web/page/text.js";
import { Chain } from "/web/parts/chain.js";
import { drawnIn } from "/web/parts/draw.js";
import { LensTable } from "/web/parts/lens.js";
import { Heads, Looks, Matrix } from "/web/parts/pattern.js";
import { Guarded } from "/web/parts/show.js";
import { labelled } from "/web/parts/text.js";
import { array } from "/web/server/api.js";
import { GRAPH } from "/web/words/graph.js";
import { WIDGETS } from "/web/words/widgets.js";

const KINDS = { graph: GraphWidget, attention: AttentionWidget, lens: LensWidget, run: RunWidget };
const EDGE = 24, LEAST = 280;

/** As anywidget calls it: draw `model` in `el`, and return what ends it. */
export function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "pellucid";
  el.append(root);
  drawnIn(root);
  let own = null, shown = null, wide = 0;
  // What is saved here comes back as a change, but is on the screen already.
  const onSave = (document) => {
    own = document;
    model.set("data", document);
    model.save_changes();
  };
  const paint = () => {
    root.dataset.scheme = isDark(el) ? "dark" : "light";
    const Kind = Object.hasOwn(KINDS, model.get("kind")) ? KINDS[model.get("kind")] : null, width = Math.max(LEAST, root.clientWidth - EDGE);
    draw(html`<${Guarded} body=${() => (Kind ? html`<${Kind} data=${shown} width=${width} onSave=${onSave} />` : html`<p class="error" role="alert">${WIDGETS.failed} ${WIDGETS.kind(model.get("kind"))}</p>`)} />`, root);
  };
  const show = () => {
    if (model.get("data") === own) return;
    shown = model.get("data");
    paint();
  };
  // A notebook may draw a cell before the cell is on the page, where it has no width and no background.
  const sized = new ResizeObserver(() => {
    if (root.clientWidth === wide) return;
    wide = root.clientWidth;
    paint();
  });
  sized.observe(root);
  model.on("change:data", show);
  model.on("change:kind", show);
  show();
  return () => {
    sized.disconnect();
    model.off("change:data", show);
    model.off("change:kind", show);
    draw(null, root);
  };
}

/** Whether the notebook around an element is dark: its nearest background. */
function isDark(element) {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  for (let one = element; one; one = one.parentNode ?? one.host) {
    if (!(one instanceof Element)) continue;
    // A canvas reads all notations of colours, such as oklch(1 0 0).
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = getComputedStyle(one).backgroundColor || "transparent";
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    if (a > 127) return 0.3 * r + 0.6 * g + 0.1 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function GraphWidget({ data, onSave }) {
  const graph = useMemo(() => readGraph(data, GRAPH.title), [data]);
  return html`<${Graph} key=${graph.number} graph=${graph} onSave=${onSave} />`;
}

function AttentionWidget({ data, width }) {
  const pattern = useMemo(() => patternOf(data), [data]), { tokens } = data, [token, setToken] = useState(tokens.length - 1), [head, setHead] = useState(0), [key, setKey] = useState(-1);
  const one = Math.min(head, pattern.shape[0] - 1), matrix = useMemo(() => ({ shape: [1, tokens.length, tokens.length], values: pattern.row(one) }), [pattern, one]);
  return html`<div><${Looks} row=${pattern.row(one, token)} faint=${null} pieces=${tokens} token=${token} wanted=${key} width=${width} where=${WIDGETS.head(one)} note=${WIDGETS.looks} pick=${setKey} />
    <div class="beside"><${Matrix} pattern=${matrix} count=${tokens.length} pieces=${tokens} width=${width} token=${token} onPick=${setToken} label=${WIDGETS.head(one)} />
      <div><${Heads} pattern=${pattern} chosen=${one} onChoose=${setHead} /></div></div></div>`;
}

function patternOf({ tokens, weights }) {
  const shape = weights?.shape, fits = Array.isArray(tokens) && tokens.length > 0 && tokens.every((one) => typeof one === "string") && shape?.length === 3 && shape[0] > 0 && shape[1] === tokens.length && shape[2] === tokens.length;
  const found = fits && typeof weights.data === "string" ? array(weights) : null;
  if (found?.values.length !== tokens.length ** 2 * shape[0]) throw new Error(WIDGETS.attention);
  return found;
}

function LensWidget({ data }) {
  const pieces = labelled(data.pieces, data.characters), [at, setAt] = useState({ token: pieces.length - 1, block: -1 });
  return html`<${LensTable} table=${data} pieces=${pieces} token=${at.token} block=${at.block} choose=${(part) => setAt({ ...at, ...part })} />`;
}

function RunWidget({ data }) {
  const [token, setToken] = useState(data.pieces.length - 1), labels = useMemo(() => labelled(data.pieces, data.characters), [data]), path = useMemo(() => data.probabilities.map((p) => ({ probability: p ?? NaN })), [data]);
  return html`<section aria-label=${WIDGETS.run}><p class="note">${WIDGETS.text(data.model, data.finish_reason)}</p>
    <${Text} labels=${labels} path=${path} promptLength=${data.prompt} at=${{ token }} choose=${(part) => setToken(part.token)} running=${false} /><${Chain} steps=${data.chain} /></section>`;
}
