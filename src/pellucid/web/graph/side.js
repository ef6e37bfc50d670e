// What is beside the picture: the chosen node with its strongest inputs and outputs, pinned nodes and groups. All of it works
// without the picture, by keyboard alone.

import { html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { layerOf } from "/web/graph/layout.js";
import { cut } from "/web/graph/plot.js";
import { isBrowsers } from "/web/parts/keys.js";
import { counted, number, percent, shown, spaced } from "/web/parts/text.js";
import { GRAPH, KINDS, MOVES } from "/web/words/graph.js";

const LISTED = 12, MOST_LABEL = 60, MOST_MEMBERS = 12;

const signed = (x) => `${x > 0 ? "+" : ""}${number(x)}`;

/** `at` is the place of the node that is described, -1 for none. `on` are {choose, pin, move, ungroup}. */
export function Side({ view, tokens, at, on }) {
  const one = view.nodes[at];
  if (!one) return html`<section class="graph-side" aria-label=${GRAPH.side}><p class="empty">${GRAPH.none}</p></section>`;
  const onKeyDown = (event) => {
    if (isBrowsers(event) || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    on.move(event.key);
  };
  const isPinned = view.isPinned.has(one.id), { facts } = GRAPH, token = html`<span class="piece">${cut(shown(tokens[one.column]), MOST_LABEL)}</span> ${one.column}`;
  const rows = [
    [facts.kind, one.kind === "other" ? one.type : KINDS[one.kind][0]], ...(one.kind === "group" ? [] : [[facts.token, token]]), [facts.layer, layerOf(one)],
    ...(one.activation === null ? [] : [[facts.activation, number(one.activation)]]), ...(one.influence === null ? [] : [[facts.influence, percent(one.influence)]]),
    ...(one.probability === null ? [] : [[facts.probability, percent(one.probability)]]),
    ...(one.members ? [[facts.members, html`${one.members.slice(0, MOST_MEMBERS).map((node) => html`<span class="chip" key=${node.id}>${cut(spaced(node.label), MOST_LABEL)}</span>`)}${one.members.length > MOST_MEMBERS && "…"}`]] : []),
    ...(one.top.length ? [[facts.top, one.top.map(([piece, value], i) => html`<span class="chip" key=${i}><span class="piece">${cut(shown(piece), MOST_LABEL)}</span> ${signed(value)}</span>`)]] : []),
  ];
  return html`<section class="graph-side" aria-label=${GRAPH.side} onKeyDown=${onKeyDown}>
    <h4 role="status">${cut(spaced(one.label), 200)}</h4>
    <div class="acts" role="group" aria-label=${GRAPH.moves}>${MOVES.map(([key, sign, what]) => html`<button type="button" key=${key} aria-label=${what} title=${what} onClick=${() => on.move(key)}>${sign}</button>`)}
      ${one.kind === "group" ? html`<button type="button" onClick=${() => on.ungroup(one.at)}>${GRAPH.ungroup}</button>`
        : html`<button type="button" aria-pressed=${isPinned} onClick=${() => on.pin(at)}>${isPinned ? GRAPH.unpin : GRAPH.pin}</button>`}</div>
    <dl class="graph-facts">${rows.map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
    <${Linked} title=${GRAPH.inputs} none=${GRAPH.noInputs} view=${view} tokens=${tokens} links=${view.inputs[at]} end="source" onChoose=${on.choose} />
    <${Linked} title=${GRAPH.outputs} none=${GRAPH.noOutputs} view=${view} tokens=${tokens} links=${view.outputs[at]} end="target" onChoose=${on.choose} /></section>`;
}

/** The strongest links of a node, as buttons that lead to the other end. */
function Linked({ title, none, view, tokens, links, end, onChoose }) {
  const some = links.slice(0, LISTED).map((one) => view.links[one]), most = Math.abs(some[0]?.weight ?? 0) || 1;
  return html`<h5>${title}${links.length > some.length && html` <span class="of">${GRAPH.rest(some.length, links.length)}</span>`}</h5>
    ${some.length === 0 ? html`<p class="empty">${none}</p>` : html`<ol class="graph-links" aria-label=${title}>${some.map((link) => {
      const other = view.nodes[link[end]];
      return html`<li key=${other.id}><span class=${`signed ${link.weight < 0 ? "negative" : ""}`} style=${{ width: `${((Math.abs(link.weight) / most) * 100).toFixed(1)}%` }}></span>
        <button type="button" class="quiet" data-id=${other.id} onClick=${() => onChoose(link[end])}>${cut(spaced(other.label), MOST_LABEL)}</button>
        <span class="id">${layerOf(other)}, <span class="piece">${cut(shown(tokens[other.column]), 16)}</span></span> <span class="num">${signed(link.weight)}</span></li>`;
    })}</ol>`}`;
}

/** The pinned nodes, of which the selected ones become a group, and the groups. */
export function Pinned({ graph, view, groups, on }) {
  const [out, setOut] = useState(new Set()), [name, setName] = useState(""), inGroup = new Set(groups.flatMap((one) => one.members));
  const free = [...view.isPinned].map((id) => graph.places.get(id)).filter((place) => place !== undefined && !inGroup.has(place)), selected = free.filter((place) => !out.has(place));
  const toggle = (place) => setOut(new Set(out.has(place) ? [...out].filter((one) => one !== place) : [...out, place]));
  const submit = (event) => {
    event.preventDefault();
    if (!name.trim() || !selected.length) return;
    on.group(name.trim(), selected.map((place) => graph.nodes[place].id));
    setName("");
    setOut(new Set());
  };
  return html`<section class="graph-pinned" aria-label=${GRAPH.pinned}><h4>${GRAPH.pinned} <span class="of">${counted(free.length)}</span></h4>
    ${free.length === 0 ? html`<p class="empty">${GRAPH.noPinned}</p>` : html`<ul>${free.map((place) => html`<li key=${place}><label><input type="checkbox" checked=${!out.has(place)} onChange=${() => toggle(place)} /> ${cut(spaced(graph.nodes[place].label), MOST_LABEL)}</label></li>`)}</ul>
      <form class="acts" onSubmit=${submit}><input type="text" aria-label=${GRAPH.groupName} placeholder=${GRAPH.groupName} maxlength="200" value=${name} onInput=${(event) => setName(event.target.value)} />
        <button type="submit" disabled=${!name.trim() || !selected.length}>${GRAPH.group}</button></form>
      <p class="note">${GRAPH.groupNote}</p>`}
    ${groups.length > 0 && html`<h4>${GRAPH.groups} <span class="of">${counted(groups.length)}</span></h4><ul>${groups.map((one) => html`<li key=${one.at}><span class="chip">${cut(spaced(one.name), MOST_LABEL)}</span> <span class="of">${counted(one.members.length)}</span>
      <button type="button" class="quiet" onClick=${() => on.ungroup(one.at)}>${GRAPH.ungroup}</button></li>`)}</ul>`}</section>`;
}
