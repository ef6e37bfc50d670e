// An attribution graph from Neuronpedia's JSON, as circuit-tracer writes it (frontend/graph_models.py). A file may come from
// anybody: types and sizes are checked before anything is drawn, and the message of an error is one line.

import { isCount, isText } from "/web/server/bounds.js";
import { GRAPH_ERRORS } from "/web/words/graph.js";

export const MOST_BYTES = 64 << 20;
const MOST_TOKENS = 4096, MOST_NODES = 20_000, MOST_LINKS = 1_000_000, MOST_DRAWN = 100_000, MOST_LAYER = 1024, MOST_PINNED = 10_000, MOST_TOP = 20;
const KINDS = { "cross layer transcoder": "feature", transcoder: "feature", "mlp reconstruction error": "error", embedding: "embedding", logit: "logit", neuron: "neuron", head: "head", position: "position" };
const NUMBERED = ["feature", "neuron", "head"], TEXTS = ["embedding", "logit"]; // kinds whose name is a number, or a token
/** Rows below and above all layers. */
export const EMBEDDINGS = -1, LOGITS = MOST_LAYER + 1;

/** Read the text of a file. Throws an Error whose message says what is wrong. */
export function parseGraph(text, name) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error(`${name} ${GRAPH_ERRORS.json}`);
  }
  return readGraph(document, name);
}

let read = 0;

/**
 * {name, document, tokens, nodes, links, pinned, groups, notes} of a document. A node is {id, kind, type, layer, column, label,
 * influence, activation, probability, isTarget, top}; `links` are three arrays, source and target as places in `nodes`;
 * `pinned` are ids, and `groups` lists as in qParams.supernodes: [name, id, …].
 */
export function readGraph(document, name) {
  try {
    return { ...parts(document), name, document, number: ++read };
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
}

/** The document with other pinned nodes and groups. */
export function savedGraph({ document }, pinned, groups) {
  return { ...document, qParams: { linkType: "both", clickedId: "", sg_pos: "", ...document.qParams, pinnedIds: pinned, supernodes: groups } };
}

function check(fits, message) {
  if (!fits) throw new Error(message);
}

function checkList(list, what, most) {
  check(list.length <= most, GRAPH_ERRORS.many(what, list.length, most));
}

const isObject = (one) => one !== null && typeof one === "object" && !Array.isArray(one);
const isMissing = (one) => one === undefined || one === null;

function parts(document) {
  const tokens = document?.metadata?.prompt_tokens;
  check(isObject(document) && Array.isArray(tokens) && Array.isArray(document.nodes) && Array.isArray(document.links), GRAPH_ERRORS.graph);
  checkList(tokens, "tokens", MOST_TOKENS);
  checkList(document.nodes, "nodes", MOST_NODES);
  checkList(document.links, "edges", MOST_LINKS);
  check(tokens.every(isText), GRAPH_ERRORS.field("metadata.prompt_tokens", "a list of texts"));
  const places = new Map(), nodes = [];
  document.nodes.forEach((one, i) => {
    const node = nodeOf(one, `nodes[${i}]`, tokens);
    if (places.has(node.id)) return; // circuit-tracer gives an error the id of a feature of layer 0
    places.set(node.id, nodes.length);
    nodes.push(node);
  });
  const { links, unknown } = linksOf(document.links, places), notes = [], { pinnedIds = [], supernodes = [] } = document.qParams ?? {};
  if (unknown) notes.push(GRAPH_ERRORS.unknown(unknown));
  if (nodes.length < document.nodes.length) notes.push(GRAPH_ERRORS.twice(document.nodes.length - nodes.length));
  if (links.weight.length < document.links.length - unknown) notes.push(GRAPH_ERRORS.links(document.links.length, links.weight.length));
  check(Array.isArray(pinnedIds) && pinnedIds.length <= MOST_PINNED && pinnedIds.every(isText), GRAPH_ERRORS.field("qParams.pinnedIds", "a list of ids"));
  check(Array.isArray(supernodes) && supernodes.length <= MOST_PINNED && supernodes.every((one) => Array.isArray(one) && one.length > 0 && one.length <= MOST_PINNED && one.every(isText)), GRAPH_ERRORS.field("qParams.supernodes", "a list of [name, id, …]"));
  return { tokens, nodes, links, places, pinned: [...pinnedIds], groups: supernodes.map((one) => [...one]), notes };
}

function nodeOf(one, where, tokens) {
  check(isObject(one) && isText(one.node_id) && one.node_id !== "", GRAPH_ERRORS.field(`${where}.node_id`, "a text"));
  check(isText(one.feature_type), GRAPH_ERRORS.field(`${where}.feature_type`, "a text"));
  check(isCount(one.ctx_idx) && one.ctx_idx < tokens.length, GRAPH_ERRORS.column(`${where}.ctx_idx`, tokens.length));
  const kind = Object.hasOwn(KINDS, one.feature_type) ? KINDS[one.feature_type] : "other", layer = one.layer === "E" ? EMBEDDINGS : /^\d{1,4}$/.test(one.layer) ? +one.layer : NaN;
  check(kind === "logit" || (layer <= MOST_LAYER && (isText(one.layer) || isCount(one.layer))), GRAPH_ERRORS.field(`${where}.layer`, `“E” or a number up to ${MOST_LAYER}`));
  for (const name of ["influence", "activation", "token_prob"]) check(isMissing(one[name]) || Number.isFinite(one[name]), GRAPH_ERRORS.field(`${where}.${name}`, "a number"));
  for (const name of ["clerp", "label"]) check(isMissing(one[name]) || isText(one[name]), GRAPH_ERRORS.field(`${where}.${name}`, "a text"));
  const top = isMissing(one.top_logits) ? [] : Array.isArray(one.top_logits) ? one.top_logits.slice(0, MOST_TOP) : null;
  check(top?.every((pair) => Array.isArray(pair) && isText(pair[0]) && Number.isFinite(pair[1])), GRAPH_ERRORS.field(`${where}.top_logits`, "a list of [text, number]"));
  return {
    id: one.node_id, kind, type: one.feature_type, layer: kind === "logit" ? LOGITS : layer, column: one.ctx_idx, label: (TEXTS.includes(kind) ? one.clerp : one.label || one.clerp) || nameOf(one, kind, tokens),
    influence: one.influence ?? null, activation: one.activation ?? null, probability: kind === "logit" ? one.token_prob ?? null : null, isTarget: one.is_target_logit === true, top,
  };
}

/** The name of a node without a label: ids are layer_number_token. */
function nameOf(one, kind, tokens) {
  if (kind === "embedding") return tokens[one.ctx_idx];
  const [, number] = one.node_id.match(/^\w+?_(?:\w+\.)?(\d+)_\d+$/) ?? [];
  if (!NUMBERED.includes(kind) || number === undefined) return one.label || (kind === "other" ? one.node_id : kind);
  return `${kind} ${one.layer}.${number}`;
}

/** The links between known nodes. Of very many, those with the largest weights. */
function linksOf(list, places) {
  const found = [];
  let unknown = 0;
  list.forEach((one, i) => {
    check(isObject(one) && isText(one.source) && isText(one.target), GRAPH_ERRORS.field(`links[${i}]`, "{source, target, weight} with two ids"));
    check(Number.isFinite(one.weight), GRAPH_ERRORS.field(`links[${i}].weight`, "a number"));
    const source = places.get(one.source), target = places.get(one.target);
    if (source === undefined || target === undefined) unknown++;
    else found.push([source, target, one.weight]);
  });
  let some = found;
  if (found.length > MOST_DRAWN) some = found.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, MOST_DRAWN);
  return { unknown, links: { source: Int32Array.from(some, (one) => one[0]), target: Int32Array.from(some, (one) => one[1]), weight: Float64Array.from(some, (one) => one[2]) } };
}
