// The page's address: it says what is seen, so that whoever opens it sees the same. Others may have written it.

import { MEASURES, PLACE, PLACE_LIMITS, VIEWS } from "/web/state/place.js";

export const FORM = { text: "The capital of France is", chat: false, max_tokens: 40, temperature: 0.7, top_k: 40, top_p: 0.95, seed: 1 };
/** The least and the greatest number, and whether it is whole, by the names of fields. */
export const LIMITS = {
  max_tokens: [1, 2000, true], temperature: [0, 2, false], top_k: [0, 1000, true], top_p: [0.01, 1, false], seed: [0, 4294967295, true],
};
export const MOST_QUESTIONS = 12; // of a lesson
const MOST_LETTERS = 300, MOST_PARTS = 64, MOST_TOKENS = 8000, MOST_ADDRESS = 30_000; // characters of a question; parts; tokens of all; characters, which browsers and mail programs take

/** What an address says: {model, form, at, edits, made, leaf, lesson}; nothing if it says nothing that can be read. */
export function fromAddress(hash) {
  let said;
  try {
    said = JSON.parse(decodeURIComponent(hash.slice(1)));
  } catch {
    return {};
  }
  if (typeof said?.model !== "string") return {};
  const { model, form, stage, at, edits, made, leaf, lesson } = said, given = like(form, FORM, LIMITS), parts = [];
  let tokens = 0;
  for (const one of (Array.isArray(made) ? made : []).slice(0, MOST_PARTS)) {
    const part = { from: whole(one?.from), token: one?.token === null ? null : whole(one?.token), count: Math.min(whole(one?.count), LIMITS.max_tokens[1]), form: like(one?.form, given, LIMITS), edits: plainEdits(one?.edits ?? edits) };
    if ((tokens += part.count) > MOST_TOKENS) break;
    parts.push(part);
  }
  return { model, form: given, at: placeOf(at, stage), edits: plainEdits(edits), leaf: whole(leaf), made: parts, lesson: Array.isArray(lesson) ? lesson.slice(0, MOST_QUESTIONS).map(questionOf).filter(Boolean) : null };
}

/** The address of a view, and whether it says all of it: long vectors and long texts do not fit. */
export function toAddress({ model, form, at, edits, made, leaf, lesson }) {
  const plain = plainEdits(edits), known = JSON.stringify(plain), end = made.findIndex((one) => one.form.messages || one.edits.some((edit) => !isPlain(edit)));
  const some = (end < 0 ? made : made.slice(0, end)).slice(0, MOST_PARTS), parts = some.map((one) => ({
    from: one.from, token: one.token, count: one.count, ...(JSON.stringify(one.edits) === known ? {} : { edits: one.edits }),
    ...(Object.keys(FORM).some((name) => one.form[name] !== form[name]) ? { form: different(one.form, form) } : {}),
  }));
  const said = { model, form: different(form, FORM), at: different(at, PLACE), edits: plain, made: parts, leaf, ...(lesson && { lesson }) };
  const text = `#${encodeURIComponent(JSON.stringify(said))}`;
  if (text.length <= MOST_ADDRESS) return [text, some.length === made.length && plain.length === edits.length];
  return [`#${encodeURIComponent(JSON.stringify({ ...said, form: different({ ...form, text: "" }, FORM), made: [], leaf: 0 }))}`, false];
}

/** A question of a lesson as {ask, answer}, or null. */
export function questionOf(one) {
  const fits = (text) => typeof text === "string" && text.length > 0 && text.length <= MOST_LETTERS;
  return fits(one?.ask) && fits(one.answer) ? { ask: one.ask, answer: one.answer } : null;
}

/** The place of an address. Before there was one place, the open panel was called the stage. */
function placeOf(given, stage) {
  const place = like(given, PLACE, PLACE_LIMITS);
  const known = (name, all) => (all.includes(place[name]) ? place[name] : all[0]);
  return { ...place, view: known("view", VIEWS), measure: known("measure", MEASURES), panel: String(place.panel || (stage ?? "")) };
}

function whole(value) {
  return Number.isSafeInteger(value) && value >= 0 ? value : 0;
}

function different(values, usual) {
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== usual[name]));
}

/** Given values where they are of the types that usual ones have, and within limits. */
function like(given, usual, limits) {
  const fits = ([name, value]) => {
    const own = given?.[name], [low, high, isWhole] = limits[name] ?? [];
    return typeof own === typeof value && (typeof value !== "number" || (own >= low && own <= high && (!isWhole || Number.isInteger(own))));
  };
  return { ...usual, ...Object.fromEntries(Object.entries(usual).filter(fits).map(([name]) => [name, given[name]])) };
}

function plainEdits(edits) {
  return (Array.isArray(edits) ? edits : []).filter((one) => typeof one?.point === "string" && typeof one.edit === "string" && isPlain(one));
}

const MOST_VALUES = 12_000; // characters of a vector in base64: 2,250 numbers

/** Whether a change fits into an address: its values are none, one number for all, or a short vector. */
function isPlain({ values }) {
  if (values === undefined || Number.isFinite(values)) return true;
  return typeof values === "string" ? values.length <= MOST_VALUES && /^[A-Za-z0-9+/=]*$/.test(values) : Array.isArray(values) && values.length <= 512 && values.every(Number.isFinite);
}
