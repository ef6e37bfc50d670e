// What a recorded run may hold at most. A file may come from anybody: its sizes are checked before anything loops over them.

export const MOST_HEADER = 64 << 20, MOST_TOKENS = 1 << 17, MOST_TEXT = 1 << 16, MOST_LISTED = 1 << 10;
const MOST_RANK = 4, MOST_SIZE = 1 << 22, MOST_HEADS = 1 << 10, MOST_VALUES = 1 << 28; // of an array
const MOST_ENTRIES = 1 << 13, MOST_HELD = 1 << 20; // of a list in an answer; of values in all answers

export const isCount = (one) => Number.isSafeInteger(one) && one >= 0;
export const isText = (one) => typeof one === "string" && one.length <= MOST_TEXT;
export const isPattern = (name) => /\.(attention|cross)\.pattern$/.test(name);
/** Whether an array has a matrix of tokens and keys for each head. */
export const isOfHeads = (name) => isPattern(name) || /\.(attention|cross)\.scores$/.test(name);
/** Whether a value of an encoder-decoder has a row for each token of the source. */
export const isOfSource = (name) => /^encoder\.|\.cross\.[kv]$/.test(name);

/** How many values an array of a shape has; null for a shape that no array of a run of so many tokens, with so many of a source, has. */
export function sizeOf(name, shape, tokens, source = 0) {
  if (!Array.isArray(shape) || !shape.length || shape.length > MOST_RANK || !shape.every((one) => isCount(one) && one <= MOST_SIZE)) return null;
  const [rows, columns, keys] = shape;
  const most = isOfSource(name) ? source : tokens, mostKeys = /\.cross\.(pattern|scores)$/.test(name) ? source : most;
  const fits = isOfHeads(name) ? shape.length === 3 && rows <= MOST_HEADS && columns <= most && keys <= mostKeys : rows <= most;
  return fits ? product(shape) : null;
}

/** The product of some sizes, of which none is above 2^22; null if it is more than an array of the page may have. */
function product(sizes) {
  if (sizes.includes(0)) return 0;
  let made = 1;
  for (const one of sizes) {
    made *= one; // at most 2^50, which is exact
    if (made > MOST_VALUES) return null;
  }
  return made;
}

/** Whether answers, which are JSON, have so few values that the page can show them. */
export function areSmall(answers) {
  const open = [answers];
  let count = 0;
  while (open.length) {
    const one = open.pop();
    if (typeof one === "string" && one.length > MOST_TEXT) return false;
    if (one === null || typeof one !== "object") continue;
    const values = Object.values(one);
    if (values.length > MOST_ENTRIES || (count += values.length) > MOST_HELD) return false;
    for (const value of values) open.push(value);
  }
  return true;
}
