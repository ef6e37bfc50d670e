// How one number comes about: its formula with the numbers that go into it. A rule is an entry of RULES.
//
// A rule has `fits(number)`, `needs(number)` (selections of points to read), `weights` (whether the server's row of weights is
// needed), and `made(number, read)`, which returns {formula, terms: [[label, value, place]], value, recorded, note,
// why}. `value` is computed here in float64 from the recorded inputs; the difference to `recorded` is shown as the rest, and
// `why` says where it comes from.

import { groupOf, pointsOfHead, sizesOf } from "/web/picture/head.js";
import { shortName } from "/web/picture/graph.js";
import { array } from "/web/server/api.js";
import { softmaxAt, strongestOf } from "/web/parts/numbers.js";
import { counted, number as written, percent } from "/web/parts/text.js";

const TERMS = 6, MOST_KEYS = 1e6; // terms of a sum that are shown; more tokens than a text has

const row = (name, { token }) => `${name}[tokens=${token}]`;
const ends = (text) => ({ name }) => name.endsWith(text);
const usesKernel = (text) => ({ operation }) => operation?.kernel.startsWith(text);

/** The largest of some products as terms: [[label, value, place]]. */
function largest(values, label, place) {
  return strongestOf(values, TERMS).map(([i, value]) => [label(i), value, place(i)]);
}

/** The products that are not among the terms, as one term. */
function others(values, terms) {
  const count = values.length - terms.length, rest = values.reduce((a, b) => a + b, 0) - terms.reduce((sum, [, value]) => sum + value, 0);
  return count > 0 ? [[`the other ${counted(count)} products together`, rest]] : [];
}

const ACTIVATIONS = {
  silu: (x) => x / (1 + Math.exp(-x)), relu: (x) => Math.max(0, x), relu2: (x) => Math.max(0, x) ** 2, sigmoid: (x) => 1 / (1 + Math.exp(-x)), tanh: Math.tanh,
  gelu_tanh: (x) => x / (1 + Math.exp(-1.5957691216 * (x + 0.044715 * x ** 3))), gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
};

/** The error function, as the engine computes it (Abramowitz and Stegun 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  return Math.sign(x) * (1 - t * Math.exp(-x * x) * [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((sum, c) => sum * t + c));
}

const pattern = {
  fits: ends(".pattern"),
  needs: ({ layer, part, head, token }) => ["scores", "pattern"].map((one) => `blocks.${layer}.${part}.${one}[heads=${head}; tokens=${token}]`),
  made({ layer, part, key, head, token }, { arrays }) {
    const name = `blocks.${layer}.${part}`, scores = arrays[`${name}.scores`].values, weights = arrays[`${name}.pattern`].values, seen = Array.from(scores, (score, s) => (weights[s] > 0 || s === key) && Number.isFinite(score) ? score : -Infinity);
    const most = Math.max(...seen), sum = seen.reduce((all, score) => all + Math.exp(score - most), 0), share = weights.reduce((a, b) => a + b, 0), value = (Math.exp(scores[key] - most) / sum) * (Math.abs(share - 1) > 1e-3 ? share : 1);
    return {
      formula: `softmax(score) = exp(score) / Σ exp(score of each token ${part === "cross" ? "of the source" : "that is seen"})`, value, recorded: weights[key],
      terms: [["the score", scores[key], { point: `${name}.scores`, ...keyOf(part, key), head, token }], ["exp(score − largest)", Math.exp(scores[key] - most)], ["Σ exp(score − largest)", sum]],
      note: `The row sums to ${share.toFixed(4)}${Math.abs(share - 1) > 1e-3 ? "; the rest goes to a sink, which no token has" : ""}.`,
    };
  },
};

/** The token that a weight or a score belongs to, as a part of the place. */
const keyOf = (part, key) => (part === "cross" ? { source: key } : { key });

const scores = {
  fits: ends(".scores"),
  needs({ info, layer, part, head, token, key }) {
    const { q, k } = pointsOfHead(info, layer, part), isOf = (name) => (info.points[name]?.shape ?? "").split(", ").length > 3;
    const one = (name, which, t) => `${name}[${isOf(name) ? `heads=${which}; ` : ""}tokens=${t}]`;
    return [...(q in info.points && k in info.points ? [one(q, head, token), one(k, groupOf(info, layer, head, part), key)] : []), `blocks.${layer}.${part}.scores[heads=${head}; tokens=${token}]`];
  },
  made({ info, layer, part, head, token, key }, { arrays }) {
    const { q, k } = pointsOfHead(info, layer, part), name = `blocks.${layer}.${part}.scores`, recorded = arrays[name].values[key], { scale = 1, softcap = 0 } = sizesOf(info, layer, part), isCross = part === "cross";
    if (!arrays[q] || !arrays[k] || arrays[q].values.length !== arrays[k].values.length) return { formula: "query · key, scaled", value: NaN, recorded, terms: [], note: "The query and the key of this head are not points of their own." };
    const width = arrays[q].values.length, products = arrays[q].values.map((x, i) => x * arrays[k].values[i]), dot = products.reduce((a, b) => a + b, 0), slope = isCross ? 0 : info.slopes?.[head], bias = slope ? -slope * (token - key) : 0;
    const plain = dot * scale + bias, value = softcap ? softcap * Math.tanh(plain / softcap) : plain, top = largest(products, (i) => `q[${i}] × k[${i}]`, (i) => ({ point: q, token, head, dim: head * width + i })), root = Math.abs(scale * Math.sqrt(width) - 1) < 1e-6 ? `/ √${width}` : `× ${written(scale)}`;
    return {
      formula: `${softcap ? `${softcap} · tanh(` : ""}q · k ${root}${bias ? " − slope × distance" : ""}${softcap ? ` / ${softcap})` : ""}`, value, recorded,
      terms: [["q · k", dot], ...(bias ? [["− slope × distance", bias]] : []), ...top, ...others(products, top)],
      note: isCross ? "The key is a projection of the encoder's output at this token of the source." : "", why: "The cache keeps keys with fewer bits than the recorded key has.",
      places: [["the query", { point: q, token, dim: head * width, view: "vector" }], ...(isCross ? [] : [["the key", { point: k, token: key, dim: groupOf(info, layer, head) * width, view: "vector" }]])],
    };
  },
};

/** What a head gathers: {pattern, v} are points; `stop` is the end of the tokens that it sees, whose texts are `labels`. Heads that look at a source see all of it. */
function gatheredOf({ info, name, layer, part, token, labels, source }) {
  const pattern = `${name.slice(0, -"heads".length)}pattern`, { v } = pointsOfHead(info, layer, part);
  if (part === "cross") return { pattern, v, stop: MOST_KEYS, labels: source?.pieces, isOfSource: true };
  return { pattern, v, stop: info.blocks[layer].causal === false ? MOST_KEYS : token + 1, labels };
}

const gathered = {
  fits: ({ name, operation }) => name.endsWith(".cross.heads") || (name.endsWith(".attention.heads") && operation?.inputs.length > 1),
  needs(number) {
    const { info, layer, part, token } = number, { head, within } = ofHead(number), { pattern, v, stop } = gatheredOf(number);
    return v in info.points ? [`${pattern}[heads=${head}; tokens=${token}]`, `${v}[heads=${groupOf(info, layer, head, part)}; dims=${within}; tokens=0:${stop}]`, `${number.name}[tokens=${token}]`] : [row(number.name, number)];
  },
  made(number, { arrays }) {
    const { info, layer, token } = number, { head, within } = ofHead(number), { pattern, v, labels, isOfSource } = gatheredOf(number), recorded = valueAt(arrays[number.name], number), weights = arrays[pattern]?.values;
    if (!weights || !arrays[v]) return { formula: "Σ weight × value", value: NaN, recorded, terms: [] };
    const products = Float64Array.from(arrays[v].values, (x, s) => x * weights[s]), place = (s) => ({ point: v, token: s, dim: groupOf(info, layer, head) * arrays[v].shape.at(-1) + within, key: s });
    return {
      formula: `Σ over tokens${isOfSource ? " of the source" : ""}: weight × value`, value: products.reduce((a, b) => a + b, 0), recorded, note: "",
      terms: largest(products, (s) => `${percent(weights[s])} of ${labels?.[s] ?? s}`, isOfSource ? (s) => ({ point: pattern, token, head, source: s, dim: -1 }) : place).filter(([, value]) => value !== 0),
      places: isOfSource ? undefined : [["the weights", { point: pattern, head, token, view: "head" }]],
    };
  },
};

function ofHead({ info, name, dim }) {
  const width = +((info.points[name]?.shape ?? "").match(/(\d+)\)$/)?.[1] ?? 1);
  return { head: Math.floor(dim / width), within: dim % width };
}

const linear = {
  fits: usesKernel("matmul"), weights: true,
  needs: (number) => [...number.operation.inputs.filter((one) => one in number.info.points), number.name].map((one) => row(one, number)),
  made(number, { arrays, weights }) {
    const recorded = valueAt(arrays[number.name], number);
    if (!weights?.input || !arrays[weights.input]) return { formula: "Σ weight × input", value: NaN, recorded, terms: [], note: "The file has no weights; a server has them." };
    const go = (j) => ({ point: weights.input, token: number.token, dim: offset + j });
    const x = arrays[weights.input].values, w = array(weights.weights).values, [offset] = weights.columns, products = Float64Array.from(w, (one, j) => one * x[offset + j]), bias = weights.bias ?? 0;
    const top = largest(products, (j) => `${written(w[j])} × ${written(x[offset + j])}, ${shortName(weights.input)}[${offset + j}]`, go);
    return {
      formula: `Σ over ${counted(w.length)} inputs: weight × input${bias ? " + bias" : ""}${weights.then.map((one) => `, then ${one.kind ?? one.kernel}`).join("")}`, value: weights.then.reduce((x, { kind, factor, cap }) => (kind ? ACTIVATIONS[kind](x) : cap ? cap * Math.tanh(x / cap) : x * factor), products.reduce((a, b) => a + b, bias)), recorded,
      terms: [...(bias ? [["bias", bias]] : []), ...top, ...others(products, top)], note: "", why: "The engine rounds the inputs of a product to 8 or 16 bits.",
      places: [["the inputs", { point: weights.input, token: number.token, view: "vector", dim: -1 }], ...(number.name === "project.logits" ? [["what each part of the model adds to it", { panel: "attribution" }]] : [])],
    };
  },
};

const sum = {
  fits: ({ operation, name }) => operation && (["", "add"].includes(operation.kernel.split(" ")[0]) || /(^|\.)residual$/.test(name)) && operation.inputs.length > 0 && !name.startsWith("project."),
  needs: (number) => [...number.operation.inputs, number.name].map((one) => row(one, number)),
  made(number, { arrays }) {
    const { operation, dim, token } = number, values = operation.inputs.map((one) => arrays[one]?.values[dim] ?? NaN);
    return { formula: operation.inputs.map(shortName).join(" + "), value: values.reduce((a, b) => a + b, 0), recorded: valueAt(arrays[number.name], number), terms: operation.inputs.map((one, i) => [one, values[i], { point: one, dim, token, ...placeOf(one) }]), note: "" };
  },
};

/** The block of a point as a place. */
export function placeOf(name) {
  const [, layer] = (name ?? "").match(/^blocks\.(\d+)\./) ?? [];
  return layer === undefined ? {} : { block: +layer };
}

const normed = {
  fits: usesKernel("norm"), weights: true,
  needs: (number) => [...number.operation.inputs, number.name].map((one) => row(one, number)),
  made(number, { arrays, weights }) {
    const { operation, dim, token, info } = number, input = operation.inputs[0], all = arrays[input]?.values, recorded = valueAt(arrays[number.name], number), isLayer = operation.kernel.includes("layer"), epsilon = info.facts?.norm_epsilon ?? 0;
    if (!all || all.length !== arrays[number.name].values.length) return { formula: "x / √(mean of x²)", value: NaN, recorded, terms: [] };
    // The norm of a head is that of its own numbers.
    const width = +(operation.shape.match(/(\d+)\)$/)?.[1] ?? all.length), start = Math.floor(dim / width) * width, x = all.subarray(start, start + width);
    const mean = isLayer ? x.reduce((a, b) => a + b, 0) / x.length : 0, square = x.reduce((total, one) => total + (one - mean) ** 2, 0) / x.length, size = Math.sqrt(square + epsilon), plain = (all[dim] - mean) / size;
    const gain = weights?.weights ?? recorded / plain, bias = weights?.bias ?? 0;
    return {
      formula: isLayer ? "(x − mean) / √(variance + ε) × gain + bias" : "x / √(mean of x² + ε) × gain", value: plain * gain + bias, recorded,
      terms: [["x", all[dim], { point: input, dim, token, ...placeOf(input) }], ...(isLayer ? [["mean", mean]] : []), [isLayer ? "√(variance + ε)" : "√(mean of x² + ε)", size], [weights?.weights === undefined ? "gain, by division" : "gain", gain], ...(bias ? [["bias", bias]] : [])], note: "",
    };
  },
};

const activation = {
  fits: ({ operation, name }) => operation?.kernel.startsWith("activation") && name.endsWith(".hidden"),
  needs: (number) => [...number.operation.inputs, number.name].map((one) => row(one, number)),
  made(number, { arrays }) {
    const { operation, dim, token, layer, name } = number, kind = operation.kernel.split(" ")[1], apply = ACTIVATIONS[kind] ?? (() => NaN), width = arrays[name].values.length;
    // An input of all blocks has the numbers of each block side by side.
    const places = operation.inputs.map((one) => (arrays[one]?.values.length > width ? layer * width + dim : dim)), [first, second] = operation.inputs.map((one, i) => arrays[one]?.values[places[i]]), raised = apply(first);
    return {
      formula: operation.inputs.length > 1 ? `${kind}(gate) × up` : `${kind}(x)`, value: operation.inputs.length > 1 ? raised * second : raised, recorded: valueAt(arrays[name], number), note: "",
      terms: [...operation.inputs.map((one, i) => [shortName(one), [first, second][i], { point: one, dim: places[i], token }]), [`${kind}(${operation.inputs.length > 1 ? "gate" : "x"})`, raised]],
    };
  },
};

const rotated = {
  fits: usesKernel("rotary "),
  needs: (number) => [...number.operation.inputs, number.name].map((one) => row(one, number)),
  made(number, { arrays }) {
    const { operation, dim, token, info } = number, [input, table] = operation.inputs, x = arrays[input].values, angles = arrays[table].values, recorded = valueAt(arrays[number.name], number), width = +((info.points[number.name].shape ?? "").match(/(\d+)\)$/)?.[1] ?? x.length), pairs = angles.length / 2;
    const start = Math.floor(dim / width) * width, within = dim - start, isPairs = operation.kernel.includes("interleaved");
    if (within >= 2 * pairs) return { formula: "not rotated: the input itself", value: x[dim], recorded, terms: [["x", x[dim], { point: input, dim, token }]] };
    const pair = isPairs ? within >> 1 : within % pairs, isFirst = isPairs ? within % 2 === 0 : within < pairs, a = start + (isPairs ? 2 * pair : pair), b = start + (isPairs ? 2 * pair + 1 : pair + pairs), cosine = angles[pair], sine = angles[pairs + pair];
    return {
      formula: isFirst ? "x₁ cos θ − x₂ sin θ" : "x₁ sin θ + x₂ cos θ", value: isFirst ? x[a] * cosine - x[b] * sine : x[a] * sine + x[b] * cosine, recorded, note: `Pair ${pair} turns by an angle that grows with the position ${token}.`,
      terms: [["x₁", x[a], { point: input, dim: a, token }], ["x₂", x[b], { point: input, dim: b, token }], ["cos θ", cosine, { point: table, dim: pair, token }], ["sin θ", sine, { point: table, dim: pairs + pair, token }]],
    };
  },
};

const probability = {
  fits: ends("project.probabilities"),
  needs: (number) => [row("project.logits", number), row(number.name, number)],
  made(number, { arrays }) {
    const logits = arrays["project.logits"].values, { dim, token } = number;
    const { probability: value, sum: total } = softmaxAt(logits, dim);
    return { formula: "softmax(logit) = exp(logit) / Σ exp(logits)", value, recorded: valueAt(arrays[number.name], number), terms: [["the logit", logits[dim], { point: "project.logits", dim, token }], ["Σ exp(logit − largest)", total]], note: "" };
  },
};

const embedded = {
  fits: ({ name }) => name === "embed", weights: true,
  needs: (number) => [row(number.name, number)],
  made(number, { arrays, weights }) {
    const { id, dim } = number, entry = weights?.weights, factor = weights?.factor ?? 1;
    return {
      formula: `row ${id} of the embedding matrix, column ${dim}${factor === 1 ? "" : " × factor"}`, value: entry === undefined ? NaN : entry * factor, recorded: valueAt(arrays[number.name], number), note: "",
      terms: entry === undefined ? [] : [["the weight", entry], ...(factor === 1 ? [] : [["factor", factor]])],
    };
  },
};

/** Any other point: the number and where it comes from. */
const other = {
  fits: () => true,
  needs: (number) => [row(number.name, number)],
  made: (number, { arrays }) => ({
    formula: number.operation?.kernel ? `the operation ${number.operation.kernel}` : "recorded", value: NaN, recorded: valueAt(arrays[number.name], number), note: "",
    terms: (number.operation?.inputs ?? []).map((one) => [shortName(one), NaN, { point: one, token: number.token, dim: -1, view: "vector", ...placeOf(one) }]),
  }),
};

export const RULES = [pattern, scores, gathered, embedded, rotated, linear, normed, activation, probability, sum, other];

export function valueAt(array, { dim }) {
  return array?.values[dim] ?? NaN;
}
