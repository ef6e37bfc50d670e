// The requests that run on the server, for the picture's loop.

import { useEffect, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { get } from "/web/server/api.js";

const EVERY = 1500; // milliseconds

/** {running, waiting, replicas} of a model, again and again while `isOn`; null before it is known. */
export function useRunning(model, isOn) {
  const [state, setState] = useState(null);
  useEffect(() => {
    setState(null);
    if (!isOn || !model) return undefined;
    let over = false, timer;
    const turn = async () => {
      const now = await get(`/look/state/${encodeURIComponent(model)}`).catch(() => null); // the panel Requests says what is wrong
      if (over) return;
      setState(now?.loaded === false ? null : now);
      timer = setTimeout(turn, EVERY);
    };
    turn();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [model, isOn]);
  return state;
}
