// The operations of a model, as the server describes them: what computes each point, and from which points.

/** The points of a block in the order of the plan, with complete names: [{name, kernel, shape, bytes, multiply_adds, inputs}]. */
export function operationsOf(info, layer) {
  const { graph } = info, kind = graph?.kinds[graph.blocks[layer]];
  if (!kind) return [];
  return kind.points.map((one) => ({ ...one, name: `blocks.${layer}.${one.name}`, inputs: one.inputs.map((input) => resolved(info, layer, input)) }));
}

/** What computes a point, or undefined. */
export function operationOf(info, name) {
  const [, layer] = name.match(/^blocks\.(\d+)\./) ?? [];
  if (layer !== undefined) return operationsOf(info, +layer).find((one) => one.name === name);
  return info.graph?.rest.find((one) => one.name === name);
}

function resolved(info, layer, input) {
  if (!input.startsWith("^")) return `blocks.${layer}.${input}`;
  if (input !== "^residual") return input.slice(1);
  return layer > 0 ? `blocks.${layer - 1}.residual` : "position" in info.points ? "position" : "embed";
}

/** What the page calls a point or a stage of the plan: the product with the output matrix gives the logits. */
export function titleOf(name) {
  return name.replace(/^project(\.logits)?$/, "logits").replace(/^project\./, "");
}

/** The name of a point without its block. */
export function shortName(name) {
  return name.replace(/^blocks\.\d+\./, "");
}

/** Bytes for people. */
export function bytes(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} GB`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} MB`;
  return count >= 1e3 ? `${(count / 1e3).toFixed(0)} kB` : `${count} B`;
}

/** The shape of a point in the field's letters with the sizes of a text: "(B, T, H, K) = (1, 12, 9, 64)". */
export function sizedShape(info, name, count) {
  const text = info.points[name]?.shape;
  if (!text) return "";
  const parts = text.slice(1, -1).split(", "), letters = parts.map((one) => one.split(" ")[0]);
  const sizes = parts.map((one, i) => (one === "B" ? 1 : one.startsWith("T") ? count : one.split(" ")[1] ?? letters[i]));
  return `(${letters.join(", ")}) = (${sizes.join(", ")})`;
}
