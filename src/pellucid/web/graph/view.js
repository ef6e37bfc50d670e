// An attribution graph to look at: the picture, the share of the influence, the chosen node, pinned nodes, groups, and Save.

import { html, useLayoutEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { MOST_EDGES } from "/web/graph/edges.js";
import { layoutOf, neighbour } from "/web/graph/layout.js";
import { Legend } from "/web/graph/marks.js";
import { Plot, namesOf } from "/web/graph/plot.js";
import { savedGraph } from "/web/graph/read.js";
import { MOST_NODES, groupsOf, sharesOf, shownOf } from "/web/graph/shown.js";
import { Pinned, Side } from "/web/graph/side.js";
import { save } from "/web/parts/files.js";
import { Slider } from "/web/parts/show.js";
import { percent } from "/web/parts/text.js";
import { GRAPH } from "/web/words/graph.js";

const LEAST = 320; // pixels of the picture

/** A graph as graph/read.js reads it. Save writes a file, or calls `onSave` with the document. */
export function Graph({ graph, onSave }) {
  const shares = useMemo(() => sharesOf(graph), [graph]), [share, setShare] = useState(shares?.first ?? null), [pinned, setPinned] = useState(graph.pinned), [lists, setLists] = useState(graph.groups);
  const [chosenId, setChosen] = useState(null), [hoveredId, setHovered] = useState(null), [said, setSaid] = useState(""), [room, setRoom] = useState(0), root = useRef(null), box = useRef(null), wanted = useRef(null);
  const names = useMemo(() => namesOf(graph.tokens), [graph]), view = useMemo(() => shownOf(graph, share, pinned, lists), [graph, share, pinned, lists]), groups = useMemo(() => groupsOf(graph, lists), [graph, lists]);
  const place = useMemo(() => layoutOf(view, graph.tokens, Math.max(LEAST, room), names), [view, room, names]);
  const idOf = (at) => view.nodes[at]?.id ?? null, chosen = view.places.get(chosenId) ?? -1, hovered = view.places.get(hoveredId) ?? -1, at = hovered >= 0 ? hovered : chosen;
  useLayoutEffect(() => {
    const measure = () => box.current && setRoom(Math.floor(box.current.clientWidth)), watcher = new ResizeObserver(measure);
    measure();
    watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  // The logits are at the right: where the picture is wider than its box, it begins there.
  useLayoutEffect(() => {
    box.current.scrollLeft = place.width;
  }, [room > 0]);
  // A node that was chosen in a list has the focus as soon as it is drawn.
  useLayoutEffect(() => {
    if (wanted.current === null) return;
    const [id, moves] = wanted.current, node = root.current.querySelector(`.node[data-at="${view.places.get(id)}"]`);
    wanted.current = null;
    node?.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (moves) node?.focus({ preventScroll: true });
  });
  const go = (id, moves) => {
    wanted.current = id === null ? null : [id, moves];
    setHovered(null);
    setChosen(id);
  };
  const pin = (to) => {
    const { id, kind } = view.nodes[to];
    if (kind !== "group") setPinned((all) => (all.includes(id) ? all.filter((one) => one !== id) : [...all, id]));
    setChosen(id);
  };
  const on = {
    pin,
    hover: (to) => setHovered(idOf(to)),
    choose: (to) => setChosen(idOf(to)),
    // In the side the focus stays on the button, so that the same key goes on.
    move: (key) => {
      const to = neighbour(place, at, key);
      if (to >= 0) go(idOf(to), false);
    },
    group: (name, ids) => {
      const rest = lists.map(([old, ...others]) => [old, ...others.filter((id) => !ids.includes(id))]).filter((one) => one.length > 1);
      setLists([...rest, [name, ...ids]]);
      go(`group ${rest.length}`, true);
    },
    ungroup: (number) => {
      setLists(lists.filter((_, i) => i !== number));
      setChosen(null);
    },
  };
  const write = () => {
    if (onSave) {
      onSave(savedGraph(graph, pinned, lists));
      setSaid(GRAPH.kept);
      return;
    }
    const { slug } = graph.document.metadata, name = `${(typeof slug === "string" && slug.replace(/[^\w.-]+/g, "_").slice(0, 80)) || "graph"}.json`;
    save(new Blob([JSON.stringify(savedGraph(graph, pinned, lists))], { type: "application/json" }), name);
    setSaid(GRAPH.saved(name));
  };
  return html`<div class="graph" ref=${root}><p class="note">${GRAPH.keys}</p>${graph.notes.map((one) => html`<p class="note" key=${one}>${one}</p>`)}
    <div class="graph-tools">${shares && html`<${Slider} label=${GRAPH.share} low=${shares.low} high=${shares.high} step=${shares.step} value=${share} onChange=${setShare} shown=${percent(share)} />`}
      <span class="note" role="status">${GRAPH.drawn(view.nodes.length, graph.nodes.length, view.links.length)}.${view.isCut ? ` ${GRAPH.fewer(MOST_NODES)}` : ""}${view.links.length > MOST_EDGES ? ` ${GRAPH.faint(MOST_EDGES)}` : ""}</span>
      <button type="button" title=${onSave ? GRAPH.keepAbout : GRAPH.saveAbout} onClick=${write}>${GRAPH.save}</button><span class="note" role="status">${said}</span></div>
    <div class="graph-body"><div class="graph-picture"><${Plot} view=${view} place=${place} tokens=${graph.tokens} names=${names} at=${at} chosen=${chosen} on=${on} box=${box} />
      <div class="graph-keys"><${Legend} nodes=${view.nodes} label=${GRAPH.legend} /><ul class="legend"><li><span class="line plus"></span>${GRAPH.positive}</li><li><span class="line minus"></span>${GRAPH.negative}</li></ul></div></div>
    <div><${Side} view=${view} tokens=${graph.tokens} at=${at} on=${{ ...on, choose: (to) => go(idOf(to), true) }} /><${Pinned} graph=${graph} view=${view} groups=${groups} on=${on} /></div></div></div>`;
}
