// How tokens are written: what cannot be seen has a sign, and nothing is ever HTML.

/** What stands for a token that continues the character of the token before it. */
export const PART = "\ue000";
const SIGNS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", [PART]: "‥" };

/** A token's text with signs for spaces, line ends and control characters. */
export function shown(piece) {
  let made = "";
  for (const one of piece) {
    const code = one.codePointAt(0);
    if (SIGNS[one]) made += SIGNS[one];
    else if (code < 32) made += String.fromCodePoint(0x2400 + code);
    else if (code === 127 || (code >= 0x80 && code < 0xa0) || isHidden(code)) made += `⟨${code.toString(16)}⟩`;
    else made += one;
  }
  return made || "∅";
}

/** A token's text as people read it: spaces and line ends stay, other signs that cannot be seen have a sign. */
export function spaced(piece) {
  return piece.split(/([ \n])/).map((part) => (part === " " || part === "\n" || part === "" ? part : shown(part))).join("");
}

/** The labels of tokens: their pieces, and where several make one character its text at the first of them. */
export function labelled(pieces, characters) {
  const made = [...pieces];
  for (const { first, stop, text } of characters ?? []) for (let at = first; at < Math.min(stop, made.length); at++) made[at] = at === first ? text : PART;
  return made;
}

/** The text of tokens that follow each other, {piece, character}. */
export function joined(tokens) {
  const found = [];
  for (const { piece, character } of tokens) {
    if (character) found.pop(); // it continues the character before
    found.push(nameOf({ piece, character }));
  }
  return found.join("");
}

/** The text of a token where it stands: the whole character, if the token continues one. */
export function nameOf({ piece, character }) {
  return character?.text ?? piece;
}

// Marks that change the direction of text, or that have no width.
function isHidden(code) {
  return (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) || (code >= 0x2060 && code <= 0x206f) || code === 0xfeff;
}

const graphemes = globalThis.Intl?.Segmenter ? new Intl.Segmenter(undefined, { granularity: "grapheme" }) : null;

/** The characters of a text as people see them. */
export function graphemesOf(text) {
  return graphemes ? Array.from(graphemes.segment(text), (one) => one.segment) : [...text];
}

const counts = new Intl.NumberFormat(); // one for all: to make one takes longer than to use it

/** A count with its thousands apart. */
export function counted(n) {
  return counts.format(n);
}

/** A share of a whole. Weights of experts and changes of a vector may be more than all of it. */
export function percent(p) {
  if (p >= 1.0005) return `${(100 * p).toFixed(0)} %`;
  if (p >= 0.9995) return "100 %";
  if (p >= 0.1) return `${(100 * p).toFixed(1)} %`;
  if (p >= 0.0001) return `${(100 * p).toFixed(2)} %`;
  return p > 0 ? "< 0.01 %" : "0 %";
}

/** Seconds as milliseconds. */
export function milliseconds(seconds) {
  if (seconds < 1e-6) return "< 0.001";
  return (1000 * seconds).toFixed(seconds >= 0.1 ? 0 : seconds >= 0.001 ? 2 : 3);
}

export function number(x) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size < 0.01 || size >= 1e5)) return x.toExponential(2);
  return x.toFixed(size >= 100 ? 1 : 3);
}
