// The text as people read it: its tokens can be chosen, and its branches.

import { Component, html, useEffect, useMemo, useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useStop } from "/web/parts/keys.js";
import { PART, percent, shown, spaced } from "/web/parts/text.js";

/** The step of a token's colour: 0 is sure, 4 is a surprise. */
function surprise(p) {
  return Number.isNaN(p) || p >= 0.8 ? 0 : p >= 0.4 ? 1 : p >= 0.15 ? 2 : p >= 0.03 ? 3 : 4;
}

const CHUNK = 20, PER_PIXEL = 0.5; // tokens that are drawn again together; characters of the lines that can be seen, by the width of the window

/** How many tokens at the beginning of a text that grows cannot be seen: whole chunks. */
function unseen(labels) {
  let room = Math.max(80, innerWidth * PER_PIXEL), first = labels.length;
  while (first > 0 && room > 0) room -= labels[--first].length;
  return Math.floor(first / CHUNK) * CHUNK;
}

/** Whether tokens carry the spaces between words, as far as the labels show: those of WordPiece do not. */
function haveSpaces(labels) {
  return labels.some((one) => /^\s|\s$/.test(one));
}

/** A text, token by token. The chosen token is the one of the picture. An encoder's words stand apart, whose pieces may have no spaces. */
export function Text({ labels, path, promptLength, at, choose, running, generates = true }) {
  const isGapped = useMemo(() => !generates && !haveSpaces(labels), [generates, labels]);
  const count = labels.length, stop = useStop(".token", count), chunks = [], within = (token, first) => (token >= first && token < first + CHUNK ? token : null);
  for (let first = 0; first < count; first += CHUNK) chunks.push(first);
  // A long text that grows shows its end alone: the browser lays out all of a paragraph for each token.
  const hidden = running ? unseen(labels) : 0;
  const follow = useRef(null);
  useEffect(() => {
    follow.current.scrollTop = running ? follow.current.scrollHeight : 0;
  }, [running && count, running]);
  return html`<div class=${`text ${isGapped ? "gapped" : ""}`} data-count=${count} dir="auto" role="group" aria-label="the text, token by token" aria-live="off" ref=${follow} ...${stop.on}>${hidden > 0 && html`<span class="note">⋮ ${hidden} tokens before </span>`}${chunks.slice(hidden / CHUNK).map((first) => html`<${Chunk} key=${first} first=${first} nodes=${path} labels=${labels} promptLength=${promptLength} to=${Math.min(count, first + CHUNK)}
    chosen=${within(at.token, first)} stop=${within(stop.at, first)} choose=${choose} />`)}${running && html`<span class="cursor" aria-hidden="true"></span>`}</div>`;
}

/** Tokens that follow each other. They are drawn again only if they are others, or another one is chosen. */
class Chunk extends Component {
  shouldComponentUpdate({ nodes, labels, chosen, stop, first, to, promptLength }) {
    const mine = this.props;
    if (chosen !== mine.chosen || stop !== mine.stop || to !== mine.to || promptLength !== mine.promptLength) return true;
    for (let t = first; t < to; t++) if (labels[t] !== mine.labels[t] || nodes[t - promptLength] !== mine.nodes[t - promptLength]) return true;
    return false;
  }

  render({ nodes, labels, first, to, promptLength, chosen, stop, choose }) {
    const tokens = [];
    for (let t = first; t < to; t++) if (labels[t] !== PART) tokens.push(html`<${Token} key=${t} node=${nodes[t - promptLength]} label=${labels[t]} t=${t} chosen=${t === chosen} stop=${t === stop} choose=${choose} />`);
    return html`<span>${tokens}</span>`;
  }
}

/** A token: of the prompt, or a node that was drawn. A line end has a sign too: there would be nothing to click. */
function Token({ node, label, t, chosen, stop, choose }) {
  const pick = () => choose({ token: t, key: -1, dim: -1 }), p = node?.probability;
  return html`<span role="button" tabindex=${stop ? 0 : -1} class=${`token ${node ? `made s${surprise(p)}` : "given"} ${label.startsWith("##") ? "joined" : ""}`} aria-pressed=${chosen} title=${`token ${t}: ${shown(label)}${Number.isFinite(p) ? `, probability ${percent(p)}` : ""}`}
    onClick=${pick} onKeyDown=${(event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), pick())}>
      ${spaced(label).replaceAll("\n", "⏎\n")}</span>`;
}

/** The branches as a tree of texts; the one that is shown is marked. */
export function Branches({ tree, running, current, onFollow }) {
  const leaves = useMemo(() => (tree.forks ? tree.leaves() : []), [tree, tree.nodes.size]);
  if (leaves.length < 2) return null;
  return html`<section class="branches" aria-labelledby="branches-title"><h3 id="branches-title">Branches</h3><ul>${leaves.map(({ leaf, depth, text }) => html`
    <li key=${leaf.id} style=${{ marginLeft: `${Math.min(depth, 8) * 10}px` }}><button type="button" class="quiet" disabled=${running} aria-pressed=${leaf.id === current} onClick=${() => onFollow(leaf)}>${shown(text)}</button></li>`)}</ul></section>`;
}
