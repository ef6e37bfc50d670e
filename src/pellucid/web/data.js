// Values that a stage shows: asked for when it is opened, kept for the texts that were looked at last.

import { useEffect, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array, post } from "/web/api.js";
import { lengths, selected } from "/web/recorded.js";

const KEPT = 24;
const known = new Map();

/** An answer of the server for a body; the same question is asked once. */
export function useAnswer(path, body) {
  const [state, setState] = useState({});
  const key = body && path + JSON.stringify(body);
  useEffect(() => {
    if (!key) return undefined;
    if (known.has(key)) {
      setState({ value: known.get(key) });
      return undefined;
    }
    const stop = new AbortController();
    setState((before) => ({ value: before.value, waiting: true }));
    post(path, body, stop.signal).then(
      (value) => {
        known.set(key, value);
        if (known.size > KEPT) known.delete(known.keys().next().value);
        setState({ value, of: key });
      },
      (error) => error.name !== "AbortError" && setState({ error }),
    );
    return () => stop.abort();
  }, [key]);
  return state;
}

/** Recorded values by their points: `points` as they are, `norms` as the lengths of their rows. */
export function useTrace(look, { points = [], norms = [] }) {
  const body = look.ids.length && !look.recorded && (points.length || norms.length)
    ? { model: look.model, prompt: look.ids, points, norms, edits: look.edits, max_tokens: 1 }
    : null;
  const { value, error, waiting } = useAnswer("/look/trace", body);
  const key = look.recorded && JSON.stringify([points, norms]);
  const kept = useMemo(() => (key ? fromFile(look.recorded, points, norms) : null), [look.recorded, key]);
  if (kept) return kept;
  if (!value || !body) return { error, waiting: waiting || !!body };
  const arrays = {};
  for (const [name, one] of Object.entries(value.arrays)) arrays[name] = array(one);
  return { arrays, pieces: value.pieces, error, waiting };
}

function fromFile({ arrays }, points, norms) {
  try {
    const found = {};
    for (const one of points) Object.assign(found, selected(arrays, one));
    for (const one of norms) for (const [name, values] of Object.entries(selected(arrays, one))) found[name] ??= lengths(values);
    return { arrays: found };
  } catch (error) {
    return { error };
  }
}

// For the curious, in the browser's console: what the server has answered.
globalThis.pellucid = { answers: known };
