// What of a graph is shown: the nodes that hold a share of the influence, the pinned ones, and groups in the place of their nodes.

export const MOST_NODES = 1500;
const FIRST = 400, STEP = 0.01; // nodes of the first picture, at most; a step of the slider

/** The least and the largest share that the nodes have, as the slider has them; null if no node has one. */
export function sharesOf({ nodes }) {
  const all = nodes.map((one) => one.influence).filter((one) => one !== null).sort((a, b) => a - b);
  if (!all.length || all[0] === all.at(-1)) return null;
  const up = (x) => +(Math.ceil(x / STEP - 1e-9) * STEP).toFixed(2);
  return { low: up(all[0]), high: up(all.at(-1)), step: STEP, first: up(all[Math.min(FIRST, all.length) - 1]) };
}

/** The groups that have nodes of the graph: [{name, members}], where no node is in two. */
export function groupsOf({ places }, groups) {
  const taken = new Set();
  return groups.map(([name, ...ids], at) => {
    const members = ids.map((id) => places.get(id)).filter((place) => place !== undefined && !taken.has(place));
    members.forEach((place) => taken.add(place));
    return { name, at, members };
  }).filter((one) => one.members.length > 0);
}

/**
 * {nodes, links, inputs, outputs, most, isCut} of the part that is shown. `inputs` and `outputs` are places in `links`, which are
 * {source, target, weight} with the largest weights first; `most` is the largest size of a weight.
 */
export function shownOf(graph, share, pinned, groups) {
  const isPinned = new Set(pinned), made = groupsOf(graph, groups), inGroup = new Map(made.flatMap((one, at) => one.members.map((place) => [place, at])));
  const isKept = (one, place) => !inGroup.has(place) && (one.influence === null || share === null || one.influence <= share + 1e-9 || isPinned.has(one.id));
  let kept = graph.nodes.map((_, place) => place).filter((place) => isKept(graph.nodes[place], place));
  const isCut = kept.length > MOST_NODES;
  if (isCut) {
    const rank = (place) => (isPinned.has(graph.nodes[place].id) ? -1 : graph.nodes[place].influence ?? 0);
    kept = kept.sort((a, b) => rank(a) - rank(b)).slice(0, MOST_NODES).sort((a, b) => a - b);
  }
  const nodes = [...kept.map((place) => graph.nodes[place]), ...made.map((one) => groupNode(graph, one))], to = new Int32Array(graph.nodes.length).fill(-1);
  kept.forEach((place, at) => (to[place] = at));
  for (const [place, at] of inGroup) to[place] = kept.length + at;
  const links = summed(graph.links, to, nodes.length, made.length > 0), inputs = nodes.map(() => []), outputs = nodes.map(() => []);
  links.forEach((one, at) => {
    inputs[one.target].push(at);
    outputs[one.source].push(at);
  });
  return { nodes, links, inputs, outputs, isPinned, isCut, most: Math.abs(links[0]?.weight ?? 0), places: new Map(nodes.map((one, at) => [one.id, at])) };
}

/** A group as a node: in the middle of its nodes. */
function groupNode({ nodes }, { name, at, members }) {
  const own = members.map((place) => nodes[place]), mean = (of) => Math.round(own.reduce((sum, one) => sum + of(one), 0) / own.length);
  const [first, ...others] = own, isOneRow = others.every((one) => one.layer === first.layer);
  const layers = [...new Set(own.map((one) => one.layer))].sort((a, b) => a - b), layer = isOneRow ? first.layer : layers[Math.floor((layers.length - 1) / 2)];
  return { id: `group ${at}`, kind: "group", type: "", at, layer, column: mean((one) => one.column), label: name, members: own, influence: null, activation: null, probability: null, isTarget: false, top: [] };
}

/** The links between shown nodes, the strongest first; those between the same two nodes as one, if nodes are grouped. */
function summed({ source, target, weight }, to, count, isGrouped) {
  const found = [], known = new Map();
  for (let i = 0; i < weight.length; i++) {
    const from = to[source[i]], at = to[target[i]];
    if (from < 0 || at < 0 || from === at) continue;
    const key = from * count + at, one = isGrouped ? known.get(key) : undefined;
    if (one) {
      one.weight += weight[i];
      continue;
    }
    const link = { source: from, target: at, weight: weight[i] };
    if (isGrouped) known.set(key, link);
    found.push(link);
  }
  return found.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}
