// The edges of a graph on a canvas: blue raises its target, red lowers it; the weight is the width and the opacity.

import { useLayoutEffect, useRef, html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useScheme } from "/web/parts/draw.js";

export const MOST_EDGES = 3000; // that are drawn while no node is chosen
const LEVELS = 10, FAINTEST = 0.05, THINNEST = 0.4, THICKEST = 2.8, MOST_PIXELS = 1 << 24;

/** A canvas with some links, the strongest first; `most` is the weight of the strongest. */
export function Edges({ links, most, place, className, strength = 1 }) {
  const canvas = useRef(null), scheme = useScheme(), { width, height } = place;
  useLayoutEffect(() => {
    const one = canvas.current, scale = Math.min(devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / (width * height)));
    one.width = Math.round(width * scale);
    one.height = Math.round(height * scale);
    const context = one.getContext("2d"), style = getComputedStyle(one);
    context.scale(scale, scale);
    const colours = ["minus", "plus"].map((name) => style.getPropertyValue(`--${name}`));
    // One stroke for all edges of a sign and a strength: to change a stroke's style takes longer than to draw a curve.
    for (const [level, signs] of levelsOf(links, most).entries()) signs.forEach((some, sign) => {
      if (!some.length) return;
      const part = (level + 1) / LEVELS;
      context.strokeStyle = colours[sign];
      context.globalAlpha = Math.min(1, FAINTEST + strength * part * part);
      context.lineWidth = THINNEST + (THICKEST - THINNEST) * part;
      context.beginPath();
      for (const { source, target } of some) curve(context, place.x[source], place.y[source], place.x[target], place.y[target]);
      context.stroke();
    });
  }, [links, most, place, scheme]);
  return html`<canvas ref=${canvas} class=${className} aria-hidden="true" data-edges=${links.length} style=${{ width: `${width}px`, height: `${height}px` }}></canvas>`;
}

/** The links by strength, the weakest first, and by sign: [[negative, positive], …]. */
function levelsOf(links, most) {
  const levels = Array.from({ length: LEVELS }, () => [[], []]);
  for (const one of links) {
    const part = Math.sqrt(Math.abs(one.weight) / (most || 1));
    levels[Math.max(0, Math.min(LEVELS, Math.ceil(part * LEVELS)) - 1)][one.weight > 0 ? 1 : 0].push(one);
  }
  return levels;
}

function curve(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  if (Math.abs(y0 - y1) < 1) context.quadraticCurveTo((x0 + x1) / 2, y0 - Math.min(30, 6 + Math.abs(x1 - x0) / 8), x1, y1);
  else context.bezierCurveTo(x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1);
}
