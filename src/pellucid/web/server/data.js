// Values that a stage shows: asked for when it is opened, kept for the texts that were looked at last.

import { useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array, post } from "/web/server/api.js";
import { answerOf, lengths, selected } from "/web/server/recorded.js";

const KEPT = 24, MOST_BYTES = 128 << 20, QUIET = 120, SOON = 400; // milliseconds before a question that may change again, because it has changed within so many
const known = new Map();

function remember(key, value, size) {
  known.set(key, { value, size });
  let sum = [...known.values()].reduce((all, one) => all + one.size, 0);
  for (const [old, one] of known) {
    if (known.size <= KEPT && sum <= MOST_BYTES) break;
    if (old === key) continue;
    known.delete(old);
    sum -= one.size;
  }
}

/** An answer with its arrays as numbers in a row, and the bytes that these take. */
function decoded(answer) {
  if (!answer.arrays) return [answer, 0];
  const arrays = Object.fromEntries(Object.entries(answer.arrays).map(([name, one]) => [name, array(one)]));
  return [{ ...answer, arrays }, Object.values(arrays).reduce((sum, one) => sum + one.values.byteLength, 0)];
}

const numbers = new Map(), numberOf = new WeakMap(), TEXTS = 64; // texts that are known by a number
let lastNumber = 0;

/** A number for a list of ids, the same for the same ids: a long text is not written out each time the page is drawn. */
export function numbered(ids) {
  if (numberOf.has(ids)) return numberOf.get(ids);
  const text = ids.join(), number = numbers.get(text) ?? ++lastNumber;
  numbers.delete(text);
  numbers.set(text, number);
  if (numbers.size > TEXTS) numbers.delete(numbers.keys().next().value);
  numberOf.set(ids, number);
  return number;
}

/** A text for a question, the same for the same question. */
function keyOf(path, body) {
  const { prompt, answer, ...rest } = body;
  return path + JSON.stringify(Array.isArray(prompt) ? { ...rest, text: numbered(prompt), ...(answer && { answer: numbered(answer) }) } : body);
}

/** An answer of the server for a body, or what a recorded run holds of it; the same question is asked once. While it is awaited there is none. */
export function useAnswer(look, path, body) {
  const [state, setState] = useState({}), held = useRef({}), changedAt = useRef(-SOON), asks = body && !look.recorded;
  const key = body && keyOf(path, body);
  useEffect(() => {
    if (!asks || held.current.key === key) return undefined;
    if (known.has(key)) {
      setState({ key }); // the answer came to another part of the page since this one was drawn
      return undefined;
    }
    const stop = new AbortController(), now = performance.now(), isAgain = now - changedAt.current < SOON;
    changedAt.current = now;
    const timer = setTimeout(() => post(path, body, stop.signal).then(
      (answer) => {
        remember(key, ...decoded(answer));
        setState({ key });
      },
      (error) => error.name !== "AbortError" && setState({ key, error }),
    ), isAgain ? QUIET : 0);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [asks && key]);
  if (!key) return {};
  if (!asks) return answerOf(look.recorded, path, body);
  // What is on the screen stays there, whatever is forgotten meanwhile.
  if (known.has(key)) held.current = { key, value: known.get(key).value };
  if (held.current.key === key) return { value: held.current.value };
  return state.key === key ? { error: state.error } : { waiting: true };
}

/** The fields of a request for the tokens that the model reads: a text, or in an encoder-decoder a source and the answer to it. */
export function readFields({ source, promptLength }, ids) {
  return source ? { prompt: source.ids, answer: ids.slice(promptLength) } : { prompt: ids };
}

/** A body with the changes of what is looked at, if there are some. */
export function changed(look, body) {
  return look.edits.length ? { ...body, edits: look.edits } : body;
}

/**
 * Recorded values by their points: `points` as they are, `norms` as the lengths of their rows, `views` of patterns by their
 * titles ({title, point, head, rows, pool}), which files do not have.
 */
export function useTrace(look, { points = [], norms = [], views = [] }) {
  const body = look.ids.length && !look.recorded && (points.length || norms.length || views.length)
    ? { model: look.model, ...readFields(look, look.ids), points, norms, edits: look.edits, max_tokens: 1, remembered: true, ...(views.length && { views }) }
    : null;
  const { value, error, waiting } = useAnswer(look, "/look/trace", body);
  const key = look.recorded && JSON.stringify([points, norms]);
  const kept = useMemo(() => (key ? fromFile(look.recorded, points, norms) : null), [look.recorded, key]);
  return kept ?? { arrays: value?.arrays, error, waiting };
}

function fromFile(recorded, points, norms) {
  try {
    const found = {};
    for (const one of points) Object.assign(found, selected(recorded, one));
    for (const one of norms) for (const [name, values] of Object.entries(selected(recorded, one))) found[name] ??= lengths(values);
    return { arrays: found };
  } catch (error) {
    return { error };
  }
}

// For the curious, in the browser's console: what the server has answered.
globalThis.pellucid = { get answers() { return new Map([...known].map(([key, one]) => [key, one.value])); } };
