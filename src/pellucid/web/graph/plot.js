// The picture of a graph: edges on canvases, nodes as marks that a pointer and the keyboard reach.

import { html, useLayoutEffect, useMemo, useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Edges, MOST_EDGES } from "/web/graph/edges.js";
import { LEFT, layerOf, neighbour } from "/web/graph/layout.js";
import { shapeOf } from "/web/graph/marks.js";
import { isBrowsers } from "/web/parts/keys.js";
import { Still } from "/web/parts/show.js";
import { graphemesOf, shown, spaced } from "/web/parts/text.js";
import { GRAPH, KINDS } from "/web/words/graph.js";

const MOST_LABEL = 26, MOST_TOKEN = 12, LETTER = 6.2, HIGH = 13, MOST_LABELS = 40, NEAR = 3, FAINTEST = 0.2; // linked nodes with a label, of each side; opacity of the weakest linked node

/** A text of at most so many characters. */
export function cut(text, most) {
  const all = graphemesOf(text.slice(0, most * 8));
  return all.length > most || text.length > most * 8 ? `${all.slice(0, most - 1).join("")}…` : text;
}

/** What a screen reader says of a node. */
function spoken(one, tokens) {
  return GRAPH.spoken(cut(spaced(one.label), 80), KINDS[one.kind][0], layerOf(one), cut(shown(tokens[one.column]), 40));
}

/** `at` is the place of the node whose edges are seen, -1 for none. `on` are {hover, choose, pin}, which get places. */
export function Plot({ view, place, tokens, names, at, chosen, on, box }) {
  const { nodes, links, inputs, outputs, most, isPinned } = view, svg = useRef(null);
  const strongest = useMemo(() => links.slice(0, MOST_EDGES), [links]);
  const own = useMemo(() => (at < 0 ? [] : [...inputs[at], ...outputs[at]].sort((a, b) => a - b).map((one) => links[one])), [view, at]);
  // One stop for the tab key: the chosen node, else the first output, else the first node.
  useLayoutEffect(() => {
    const stop = chosen >= 0 ? chosen : Math.max(0, nodes.findIndex((one) => one.kind === "logit"));
    for (const one of svg.current.querySelectorAll(".node[tabindex='0']")) one.setAttribute("tabindex", -1);
    svg.current.querySelector(`.node[data-at="${stop}"]`)?.setAttribute("tabindex", 0);
  }, [view, chosen]);
  const placeOf = (event) => +(event.target.closest?.(".node")?.dataset.at ?? -1);
  const onKeyDown = (event) => {
    const from = placeOf(event);
    if (from < 0 || isBrowsers(event)) return;
    if (event.key === "Enter" || event.key === " ") on.pin(from);
    else if (event.key === "Escape" && chosen >= 0) on.choose(-1);
    else if (event.key.startsWith("Arrow")) {
      const to = neighbour(place, from, event.key);
      if (to >= 0) svg.current.querySelector(`.node[data-at="${to}"]`).focus();
    } else return;
    event.preventDefault();
  };
  const onClick = (event) => {
    const to = placeOf(event);
    if (to < 0) on.choose(-1);
    else on.pin(to);
  };
  const marks = () => html`<g>${nodes.map((one, i) => html`<g key=${one.id} class=${`node ${one.kind}${isPinned.has(one.id) ? " pinned" : ""}`} role="button" tabindex="-1" data-at=${i} data-id=${one.id}
    aria-label=${spoken(one, tokens)} aria-pressed=${one.kind === "group" ? null : isPinned.has(one.id)} transform=${`translate(${place.x[i].toFixed(1)} ${place.y[i].toFixed(1)})`}>
    <circle class="hit" r="7" /><path class=${`shape ${one.kind}`} d=${shapeOf(one.kind)} /></g>`)}</g>`;
  const linked = own.map((one) => [one.source === at ? one.target : one.source, one.weight]);
  return html`<div class="graph-scroll" role="region" aria-label=${GRAPH.scroll} tabindex="-1" ref=${box}><div class=${`graph-plot${at >= 0 ? " focused" : ""}`} style=${{ width: `${place.width}px`, height: `${place.height}px` }}>
    <${Still} isStill=${true} of=${[place, names]} body=${() => html`<${Columns} place=${place} names=${names} />`} />
    <${Still} isStill=${true} of=${[strongest, most, place]} body=${() => html`<${Edges} links=${strongest} most=${most} place=${place} className="all" strength=${0.7} />`} />
    <${Edges} links=${own} most=${Math.abs(own[0]?.weight ?? 0)} place=${place} className="own" />
    <svg ref=${svg} class="graph-svg nodes" width=${place.width} height=${place.height} role="group" aria-label=${GRAPH.title} onKeyDown=${onKeyDown} onClick=${onClick}
      onfocusin=${(event) => on.choose(placeOf(event))} onMouseOver=${(event) => on.hover(placeOf(event))} onMouseLeave=${() => on.hover(-1)}>
      <${Still} isStill=${true} of=${[view, place]} body=${marks} />
      <g class="linked" aria-hidden="true">${linked.map(([i, weight]) => html`<path key=${i} class=${`shape ${weight > 0 ? "plus" : "minus"}`} opacity=${Math.max(FAINTEST, Math.sqrt(Math.abs(weight / (own[0].weight || 1)))).toFixed(2)} d=${shapeOf(nodes[i].kind)} transform=${`translate(${place.x[i]} ${place.y[i]})`} />`)}
        ${at >= 0 && html`<path class="shape current" d=${shapeOf(nodes[at].kind)} transform=${`translate(${place.x[at]} ${place.y[at]}) scale(1.4)`} />`}</g>
      <${Labels} view=${view} place=${place} at=${at} linked=${linked} />
    </svg>
    <${Still} isStill=${true} of=${[place]} body=${() => html`<${Layers} place=${place} />`} /></div></div>`;
}

/** The names of layers, which stay at the left while the picture is moved. */
function Layers({ place }) {
  return html`<svg class="graph-svg layers" width=${LEFT - 8} height=${place.height} aria-hidden="true">${place.rows.map(({ label, y, height }) => html`<text key=${label} x="2" y=${y + height / 2 + 4}>${label}</text>`)}</svg>`;
}

/** The columns below the edges, with the tokens at the bottom. */
function Columns({ place, names }) {
  const { width, height, columns, bottom, isTurned } = place, middle = (one) => one.left + one.width / 2;
  return html`<svg class="graph-svg" width=${width} height=${height} aria-hidden="true">
    ${columns.map(({ left, width }, i) => i % 2 === 1 && html`<rect key=${i} class="band" x=${left} y="0" width=${width} height=${bottom} />`)}
    ${columns.map((one, i) => (!isTurned || one.width > 9) && html`<text key=${i} class="token" ...${isTurned
      ? { "text-anchor": "end", transform: `translate(${middle(one) + 4} ${bottom + 12}) rotate(-50)` } : { "text-anchor": "middle", x: middle(one), y: bottom + 14 }}>${names[i]}</text>`)}</svg>`;
}

/** Labels of the current node and its strongest neighbours, of groups, pinned nodes and logits, as far as there is room. */
function Labels({ view, place, at, linked }) {
  const { nodes, isPinned } = view, wanted = new Set(at >= 0 ? [at] : []), taken = [], found = [];
  for (const [i] of linked.slice(0, 2 * NEAR)) wanted.add(i);
  nodes.forEach((one, i) => (one.kind === "group" || isPinned.has(one.id)) && wanted.add(i));
  nodes.map((one, i) => [one, i]).filter(([one]) => one.kind === "logit").sort(([a], [b]) => b.probability - a.probability).forEach(([, i]) => wanted.add(i));
  for (const i of wanted) {
    if (found.length >= MOST_LABELS) break;
    const one = nodes[i], text = cut(spaced(one.label), MOST_LABEL), wide = text.length * LETTER, isRight = place.x[i] + 10 + wide <= place.width;
    const left = isRight ? place.x[i] + 10 : place.x[i] - 10 - wide, top = place.y[i] - HIGH / 2;
    if (taken.some((other) => left < other.left + other.wide && other.left < left + wide && Math.abs(top - other.top) < HIGH)) continue;
    taken.push({ left, top, wide });
    found.push(html`<text key=${one.id} class=${`label${i === at ? " current" : ""}`} x=${isRight ? left : place.x[i] - 10} y=${place.y[i] + 4} text-anchor=${isRight ? "start" : "end"}>${text}</text>`);
  }
  return html`<g class="labels" aria-hidden="true">${found}</g>`;
}

/** The names of tokens below the columns. */
export function namesOf(tokens) {
  return tokens.map((one) => cut(shown(one), MOST_TOKEN));
}

