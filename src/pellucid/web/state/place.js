// The place: what is selected, everywhere at once. The text, the picture, the cards and the address all read it.

import { useCallback, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";

/**
 * The selection. `token` is a position in the text (-1: the last one that was read), `block` and `head` are numbers, `view`
 * is how near the picture is, `point` with `head`, `dim` and `key` is a number of it (-1: none), `source` is a token of an encoder-decoder's source (-1: none), `panel` is the open panel,
 * `stop` the stop of the tour (0: no tour), `measure` what the stages show. -1 for temperature, top_k and top_p stands for
 * what the form says.
 */
export const PLACE = {
  view: "whole", token: -1, block: 0, head: 0, point: "", dim: -1, key: -1, source: -1, panel: "", stop: 0, measure: "values",
  beams: 3, temperature: -1, top_k: -1, top_p: -1,
};
export const VIEWS = ["whole", "heads", "block", "head", "vector"], MEASURES = ["values", "time", "bytes"];

const MAX = 1e6, TOGETHER = 500; // largest number; milliseconds within which changes are one entry of the history
/** The least and the greatest value, and whether it is an integer, by the names of fields. */
export const PLACE_LIMITS = {
  token: [-1, MAX, true], block: [0, MAX, true], head: [0, MAX, true], dim: [-1, MAX, true], key: [-1, MAX, true], source: [-1, MAX, true],
  stop: [0, 20, true], beams: [1, 8, true], temperature: [-1, 2, false], top_k: [-1, 1000, true],
  top_p: [-1, 1, false],
};
// A change of these is a step that Back takes back; a slider's is not.
const STEPS = ["view", "token", "block", "head", "point", "dim", "key", "source", "panel", "stop", "measure"];

/** The place with a token that there is, and a block that there is. Where no token is chosen, it is token `usual`. */
export function within(at, count, blocks, usual = count - 1) {
  const last = Math.max(0, count - 1), block = Math.min(at.block, Math.max(0, blocks.length - 1));
  return { ...at, token: Math.max(0, Math.min(at.token < 0 ? usual : at.token, last)), block, head: Math.min(at.head, Math.max(0, (blocks[block]?.heads || 1) - 1)) };
}

/**
 * The place and how to change it. `write(place, isStep)` puts it into the address; `read()` is the place of the address,
 * or null if the address is about another text.
 */
export function usePlace(first, write, read) {
  const [at, setAt] = useState({ ...PLACE, ...first }), last = useRef(0), ways = useRef({});
  ways.current = { write, read, at };
  const choose = useCallback((part) => {
    const before = ways.current.at, after = { ...before, ...part };
    // Another block means the same point there.
    if (part.block !== undefined && part.point === undefined) after.point = before.point.replace(/^blocks\.\d+\./, `blocks.${part.block}.`);
    const changed = Object.keys(part).filter((name) => part[name] !== before[name]);
    if (!changed.length) return;
    const isStep = changed.some((name) => STEPS.includes(name)), now = performance.now();
    ways.current.at = after;
    setAt(after);
    ways.current.write?.(after, isStep && now - last.current > TOGETHER);
    if (isStep) last.current = now;
  }, []);
  useEffect(() => {
    const back = () => {
      const place = ways.current.read?.();
      if (place) setAt({ ...PLACE, ...place });
      else if (ways.current.read) location.reload(); // another link was opened in this tab
    };
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  return [at, choose];
}
