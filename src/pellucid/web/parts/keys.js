// The keyboard in long rows: one stop for the tab key, arrows from one part to the next.

import { useState } from "/web/vendor/htm-preact-3.1.1.module.js";

const BACK = { ArrowLeft: -1, ArrowUp: -1, PageUp: -10 }, FORTH = { ArrowRight: 1, ArrowDown: 1, PageDown: 10 };

/** The number that a key chooses from 0 to `most`; null if it chooses none. */
export function stepped(key, value, most) {
  if (key === "Home") return 0;
  if (key === "End") return most;
  const by = BACK[key] ?? FORTH[key];
  return by === undefined ? null : Math.max(0, Math.min(most, value + by));
}

/** Whether a key belongs to the browser: those with others held down do. */
export function isBrowsers(event) {
  return event.ctrlKey || event.metaKey || event.altKey;
}

/**
 * What a row of parts needs to be one stop for the tab key: `at` is the part that it finds, `on` are handlers for the
 * element around the parts, which `selector` finds.
 */
export function useStop(selector, count) {
  const [at, setAt] = useState(0), parts = (event) => [...event.currentTarget.querySelectorAll(selector)];
  const onKeyDown = (event) => {
    if (isBrowsers(event) || !event.target.matches(selector)) return;
    const all = parts(event), to = stepped(event.key, all.indexOf(event.target), all.length - 1);
    if (to === null) return;
    event.preventDefault();
    all[to].focus();
  };
  const onfocusin = (event) => event.target.matches(selector) && setAt(parts(event).indexOf(event.target));
  return { at: Math.max(0, Math.min(at, count - 1)), on: { onKeyDown, onfocusin } };
}
