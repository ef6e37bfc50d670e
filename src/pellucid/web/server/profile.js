// Measured times of a model's steps. They are measured when somebody asks, once for all parts of the page that show them.

import { useEffect, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { post } from "/web/server/api.js";

const known = new Map(), shown = new Set(); // what was measured, by model; how to draw the parts that show it
const NOTHING = { steps: {}, last: 0 };

/** What was measured of a model: {steps: {value, waiting, error} by the number of tokens, last: the number that was asked for last}. */
export function useProfiles(model) {
  const [, draw] = useState(0);
  useEffect(() => {
    const again = () => draw((n) => n + 1);
    shown.add(again);
    return () => shown.delete(again);
  }, []);
  return known.get(model) ?? NOTHING;
}

function keep(model, tokens, state) {
  const before = known.get(model) ?? NOTHING;
  known.set(model, { steps: { ...before.steps, [tokens]: state }, last: tokens });
  shown.forEach((again) => again());
}

/** Measure a step of some tokens. Until the answer is there the times before stay. */
export async function measure(model, tokens) {
  const { value } = known.get(model)?.steps[tokens] ?? {};
  keep(model, tokens, { value, waiting: true });
  try {
    keep(model, tokens, { value: await post("/look/profile", { model, tokens, depth: 0 }) });
  } catch (error) {
    keep(model, tokens, { value, error });
  }
}
