// The texts of the attribution graph.

import { counted } from "/web/parts/text.js";

/** The names of a kind of node: what it is, and what the legend calls it. */
export const KINDS = {
  feature: ["feature", "features"], neuron: ["neuron", "neurons"], head: ["attention head", "heads"], error: ["error", "errors"],
  embedding: ["embedding", "embeddings"], position: ["position", "positions"], logit: ["logit", "logits"], group: ["group", "groups"], other: ["other node", "other nodes"],
};

export const GRAPH = {
  title: "Attribution graph",
  about: "What made the next token. Columns are tokens, rows are layers, and an edge is the direct, linear effect of a node on another: blue raises its target, red lowers it.",
  button: "Attribution graph",
  buttonAbout: "The parts that lead to the next token, and their effects on each other.",
  answer: "The server’s answer",
  units: "nodes are", neurons: "neurons and heads", features: (name) => `features of ${name}`,
  count: "nodes",
  keys: "Hover over a node, or move with the arrow keys. Enter or a click pins a node.",
  share: "share of the influence",
  legend: "kinds of nodes",
  positive: "raises its target", negative: "lowers its target",
  scroll: "nodes by token and layer",
  none: "Choose a node: its inputs and outputs are listed here.",
  side: "the chosen node",
  inputs: "Inputs", outputs: "Outputs", noInputs: "No inputs are drawn.", noOutputs: "No outputs are drawn.",
  moves: "move to another node",
  pin: "Pin", unpin: "Unpin", ungroup: "Ungroup",
  pinned: "Pinned nodes", noPinned: "No node is pinned.", groups: "Groups",
  groupName: "name of the group", group: "Group the selected nodes", groupNote: "A group is drawn as one node. Its edges are the sums of the edges of its nodes.",
  save: "Save", saveAbout: "save the graph with its pinned nodes and groups, as JSON that Neuronpedia reads too",
  keepAbout: "write the pinned nodes and groups to the widget's data", kept: "Saved in the widget’s data.",
  saved: (name) => `Saved as ${name}.`,
  embed: "embeddings", logits: "logits", layer: (layer) => `layer ${layer}`,
  drawn: (nodes, all, edges) => `${counted(nodes)} of ${several(all, "node")}, ${several(edges, "edge")}`,
  faint: (most) => `Without a chosen node the picture has the ${counted(most)} strongest edges.`,
  fewer: (most) => `The picture has the ${counted(most)} nodes with the most influence. Lower the share to see a complete picture.`,
  facts: { kind: "kind", token: "token", layer: "layer", activation: "activation", influence: "share up to here", probability: "probability", members: "nodes", top: "promotes the tokens" },
  rest: (some, all) => `the ${counted(some)} strongest of ${counted(all)}`,
  spoken: (label, kind, layer, token) => `${label}, ${[...new Set([kind, layer].map((one) => one.replace(/s$/, "")))].join(", ")}, token “${token}”`,
};

/** The buttons that move to another node: the key, the sign, and what it does. */
export const MOVES = [
  ["ArrowLeft", "←", "node before in this layer"], ["ArrowRight", "→", "next node in this layer"], ["ArrowUp", "↑", "node in a layer above"], ["ArrowDown", "↓", "node in a layer below"],
];

const several = (count, name) => `${counted(count)} ${name}${count === 1 ? "" : "s"}`;

/** What is wrong with a graph, or what of it is not drawn. */
export const GRAPH_ERRORS = {
  json: "is no JSON",
  graph: "is no attribution graph: it needs metadata.prompt_tokens, nodes and links",
  bytes: (most) => `has more than ${most >> 20} MB, the limit of the page`,
  many: (what, count, most) => `has ${counted(count)} ${what}; the page draws ${counted(most)} at most`,
  field: (where, wanted) => `${where} must be ${wanted}`,
  column: (where, tokens) => `${where} is no token of the prompt, which has ${counted(tokens)} tokens`,
  unknown: (count) => `${several(count, "edge")} of nodes that the graph does not have: not drawn.`,
  twice: (count) => `${several(count, "node")} with the id of a node before: not drawn.`,
  links: (count, most) => `Of ${counted(count)} edges the ${counted(most)} strongest are drawn.`,
};
