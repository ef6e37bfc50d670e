// How tokens are written: what cannot be seen has a sign, and nothing is ever HTML.

const SIGNS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };

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

// Marks that change the direction of text, or that have no width.
function isHidden(code) {
  return (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) || (code >= 0x2060 && code <= 0x206f) || code === 0xfeff;
}

export function percent(p) {
  if (p >= 0.9995) return "100 %";
  if (p >= 0.1) return `${(100 * p).toFixed(1)} %`;
  if (p >= 0.001) return `${(100 * p).toFixed(2)} %`;
  return p > 0 ? `${(100 * p).toExponential(0)} %` : "0 %";
}

export function number(x) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size < 0.01 || size >= 1e5)) return x.toExponential(2);
  return x.toFixed(size >= 100 ? 1 : 3);
}
