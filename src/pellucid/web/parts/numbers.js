// What several parts of the page compute of many numbers.

/** The `count` numbers of the largest size: [[place, number], …], the largest first. Numbers that are not finite are left out. */
export function strongestOf(values, count) {
  const top = [];
  values.forEach((value, at) => {
    if (!Number.isFinite(value) || (top.length === count && Math.abs(value) <= Math.abs(top.at(-1)[1]))) return;
    top.push([at, value]);
    top.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    if (top.length > count) top.pop();
  });
  return top;
}

/** The softmax of some logits at one of them: {probability, sum}, where `sum` is that of exp(logit − largest). */
export function softmaxAt(logits, token) {
  let most = -Infinity, sum = 0;
  for (const one of logits) if (one > most) most = one;
  for (const one of logits) sum += Math.exp(one - most);
  return { probability: Math.exp(logits[token] - most) / sum, sum };
}

/** The scores of labels from their logits; `scale` is that of the model's labels. */
export function scoresOf(logits, scale) {
  if (scale === "none") return Array.from(logits);
  if (scale === "sigmoid") return Array.from(logits, (x) => 1 / (1 + Math.exp(-x)));
  const most = Math.max(...logits), weights = Array.from(logits, (x) => Math.exp(x - most)), sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((x) => x / sum);
}
