// The page's address: it says what is seen, so that whoever opens it sees the same. Others may have written it.

export const FORM = { text: "The capital of France is", chat: false, max_tokens: 40, temperature: 0.7, top_k: 40, top_p: 0.95, seed: 1 };
/** The place in the stages, and what is chosen in them; -1 stands for what the text or the form says. */
export const PLACE = { block: 0, head: 0, token: -1, chosen: -1, near: 0, beams: 3, temperature: -1, top_k: -1, top_p: -1 };
const MOST_PARTS = 64, MOST_ADDRESS = 30_000; // characters, which browsers and mail programs take

/** What an address says: {model, form, stage, at, edits, made, leaf}; nothing if it says nothing that can be read. */
export function fromAddress(hash) {
  try {
    const { model, form, stage, at, edits, made, leaf } = JSON.parse(decodeURIComponent(hash.slice(1)));
    const given = like(form, FORM);
    return {
      model: String(model), form: given, stage: String(stage ?? ""), at: like(at, PLACE), edits: plainEdits(edits), leaf: whole(leaf),
      made: (Array.isArray(made) ? made : []).slice(0, MOST_PARTS).map((one) => ({ from: whole(one?.from), token: one?.token === null ? null : whole(one?.token), count: whole(one?.count), form: like(one?.form, given), edits: plainEdits(one?.edits ?? edits) })),
    };
  } catch {
    return {};
  }
}

/** The address of a view. Parts of the text that were made with vectors, which are too long for it, are left out, and what follows them. */
export function toAddress({ model, form, stage, at, edits, made, leaf }) {
  const plain = plainEdits(edits), known = JSON.stringify(plain), end = made.findIndex((one) => one.edits.some((edit) => edit.values !== undefined));
  const parts = (end < 0 ? made : made.slice(0, end)).slice(0, MOST_PARTS).map((one) => ({
    from: one.from, token: one.token, count: one.count, ...(JSON.stringify(one.edits) === known ? {} : { edits: one.edits }),
    ...(Object.keys(FORM).some((name) => one.form[name] !== form[name]) ? { form: different(one.form, form) } : {}),
  }));
  const said = { model, form: different(form, FORM), stage, at: different(at, PLACE), edits: plain, made: parts, leaf };
  let text = `#${encodeURIComponent(JSON.stringify(said))}`;
  if (text.length > MOST_ADDRESS) text = `#${encodeURIComponent(JSON.stringify({ ...said, form: different({ ...form, text: "" }, FORM), made: [], leaf: 0 }))}`;
  return text;
}

function whole(value) {
  return Number.isSafeInteger(value) && value >= 0 ? value : 0;
}

function different(values, usual) {
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== usual[name]));
}

/** Given values of the types that usual ones have; numbers no less than -1. */
function like(given, usual) {
  const fits = ([name, value]) => typeof given?.[name] === typeof value && (typeof value !== "number" || (Number.isFinite(given[name]) && given[name] >= -1));
  return { ...usual, ...Object.fromEntries(Object.entries(usual).filter(fits).map(([name]) => [name, given[name]])) };
}

function plainEdits(edits) {
  return (Array.isArray(edits) ? edits : []).filter((one) => typeof one?.point === "string" && typeof one.edit === "string" && one.values === undefined);
}
