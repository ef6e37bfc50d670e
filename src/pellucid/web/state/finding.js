// Where an example looks: the server finds the token of its word, the block where the answer turns, and the head that reads there.

import { useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { post } from "/web/server/api.js";

const ENDS = ["pointerdown", "keydown", "wheel"]; // what a reader does ends the search

/** `find(example)` chooses the place of an example; while `isSearching`, nothing need be read of the place before; `head` is what was found of a head: {layer, head, token, key, without, probability, text}. */
export function useFinding({ model, choose }) {
  const search = useRef(null), [head, setHead] = useState(null), [isSearching, setSearching] = useState(false);
  useEffect(() => {
    const end = () => {
      search.current?.abort();
      setSearching(false);
    };
    for (const one of ENDS) addEventListener(one, end, true);
    return () => ENDS.forEach((one) => removeEventListener(one, end, true));
  }, []);
  const find = async ({ form, word = "", key = "" }) => {
    const mine = (search.current = new AbortController());
    setHead(null);
    setSearching(true);
    try {
      const { position, block, heads: [best], ...more } = await post("/look/place", { model, prompt: form.text, word, key }, mine.signal);
      if (mine.signal.aborted || search.current !== mine) return;
      choose({ token: position, ...(block === undefined ? {} : { block }), ...(best && { block: best.layer, head: best.head }) });
      if (best && key) setHead({ ...more, ...best });
    } catch {
      // A model without patterns has no such place: the picture stays where it is.
    } finally {
      if (search.current === mine) setSearching(false);
    }
  };
  return { find, head, isSearching };
}
