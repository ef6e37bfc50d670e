// The window: its size, light or dark, and presentation mode, in which everything is large enough for a room.

import { useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { appearanceChanged } from "/web/parts/draw.js";
import { isBrowsers } from "/web/parts/keys.js";
import { storage } from "/web/server/api.js";
import { TOUR } from "/web/words/tour.js";

const KEY = "pellucid.scheme", LEAST = 1.7, MOST = 2.4, PER_SCALE = 1130; // type of 11 pixels, the smallest, becomes 18 and more
const PRESENT = "larger type, for a room: Escape leaves it, arrow keys go through the tour";
const EDGES = { usual: [48, 20], presented: [100, 36] }; // pixels beside the picture: in a wide window and in a narrow one

/** {width, height, scale, isPresented, tools}: the room of the picture, the size of its type, and the buttons for both. */
export function useScreen() {
  const [size, setSize] = useState([innerWidth, innerHeight]), [isPresented, setPresented] = useState(false), [isDark, setDark] = useDark();
  useEffect(() => {
    const changed = () => setSize([innerWidth, innerHeight]);
    addEventListener("resize", changed);
    return () => removeEventListener("resize", changed);
  }, []);
  const scale = isPresented ? Math.max(LEAST, Math.min(MOST, size[0] / PER_SCALE)) : 1;
  useEffect(() => {
    document.documentElement.classList.toggle("presented", isPresented);
    document.documentElement.dataset.zoom = scale;
    appearanceChanged();
  }, [isPresented, scale]);
  useEffect(() => {
    if (!isPresented) return undefined;
    const leave = (event) => event.key === "Escape" && !event.defaultPrevented && setPresented(false);
    addEventListener("keydown", leave);
    return () => removeEventListener("keydown", leave);
  }, [isPresented]);
  const [wide, narrow] = EDGES[isPresented ? "presented" : "usual"], tools = [
    { name: "Dark", label: "dark colours, or light ones", pressed: isDark, onClick: () => setDark(!isDark) },
    { name: "Present", label: PRESENT, pressed: isPresented, onClick: () => setPresented(!isPresented) },
  ];
  return { width: Math.max(280, size[0] - (size[0] < 900 ? narrow : wide)), height: size[1], scale, isPresented, tools };
}

/** Whether the page is dark: what the system says, until somebody chooses. The choice is kept for this tab. */
function useDark() {
  const query = matchMedia("(prefers-color-scheme: dark)"), [chosen, setChosen] = useState(storage.getItem(KEY)), [system, setSystem] = useState(query.matches);
  useEffect(() => {
    const changed = () => setSystem(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    if (chosen !== "dark" && chosen !== "light") return;
    document.documentElement.dataset.scheme = chosen;
    storage.setItem(KEY, chosen);
    appearanceChanged();
  }, [chosen]);
  return [chosen ? chosen === "dark" : system, (isDark) => setChosen(isDark ? "dark" : "light")];
}

/** In presentation mode the arrow keys go through the stops of the tour, unless something has the focus that uses them. */
export function useTourKeys(isOn, at, choose) {
  const stop = useRef(0);
  stop.current = at.stop;
  useEffect(() => {
    if (!isOn) return undefined;
    const go = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], focused = document.activeElement;
      const isFree = focused === document.body || focused.matches(".tools button, .stops button");
      if (!by || isBrowsers(event) || event.defaultPrevented || !isFree) return;
      event.preventDefault();
      stop.current = Math.max(1, Math.min(TOUR.length, stop.current + by));
      choose({ stop: stop.current });
    };
    addEventListener("keydown", go);
    return () => removeEventListener("keydown", go);
  }, [isOn]);
}
