// Shapes of the picture, as texts of SVG paths. Numbers are pixels of the picture.

/** A number of pixels with one digit. */
export const round = (x) => Math.round(x * 10) / 10;

/** A ribbon from (x0, y) to (x1, y), `from` wide at its beginning and `to` wide at its end. */
export function ribbon(x0, x1, y, from, to) {
  const [a, b, half] = [round(from / 2), round(to / 2), round((x0 + x1) / 2)];
  const y0 = round(y), at = (dy) => round(y0 + dy);
  return `M${round(x0)} ${at(-a)}C${half} ${at(-a)} ${half} ${at(-b)} ${round(x1)} ${at(-b)}V${at(b)}C${half} ${at(b)} ${half} ${at(a)} ${round(x0)} ${at(a)}Z`;
}

/** A band along y through points [[x, width], …]. */
export function band(points, y) {
  const y0 = round(y), side = (sign, some) => some.map(([x, width]) => `${round(x)} ${round(y0 + (sign * width) / 2)}`).join("L");
  return `M${side(-1, points)}L${side(1, [...points].reverse())}Z`;
}

/** A curve from (x0, y0) to (x1, y1) that leaves and arrives level. */
export function link(x0, y0, x1, y1) {
  const half = round((x0 + x1) / 2);
  return `M${round(x0)} ${round(y0)}C${half} ${round(y0)} ${half} ${round(y1)} ${round(x1)} ${round(y1)}`;
}

/** A line with rounded corners through points [[x, y], …]. */
export function bent(points, radius = 14) {
  let path = `M${points[0].map(round).join(" ")}`;
  for (let i = 1; i < points.length; i++) {
    const [x, y] = points[i], after = points[i + 1];
    if (!after) return `${path}L${round(x)} ${round(y)}`;
    const toward = ([px, py]) => {
      const size = Math.hypot(px - x, py - y) || 1, by = Math.min(radius, size / 2);
      return `${round(x + ((px - x) / size) * by)} ${round(y + ((py - y) / size) * by)}`;
    };
    path += `L${toward(points[i - 1])}Q${round(x)} ${round(y)} ${toward(after)}`;
  }
  return path;
}

/** The widening of a feed-forward and its way back, in the box [x, y, width, height]. */
export function spindle(x, y, width, height, waist = 0.34) {
  const low = round(y + height * (0.5 - waist / 2)), high = round(y + height * (0.5 + waist / 2));
  const [a, b] = [round(x + width * 0.3), round(x + width * 0.7)];
  return `M${round(x)} ${low}L${a} ${round(y)}H${b}L${round(x + width)} ${low}V${high}L${b} ${round(y + height)}H${a}L${round(x)} ${high}Z`;
}

export const SHADES = 6;

/**
 * A vector as a strip of cells in a box, one path for each shade: [[name of a class, path], …]. Positive values have the
 * classes "plus1" to "plus6", negative ones "minus1" to "minus6"; `most` has the strongest shade.
 */
export function strip(values, [x, y, width, height], most) {
  const paths = {}, cell = width / values.length;
  for (let i = 0; i < values.length; i++) {
    const size = Math.min(SHADES, Math.ceil((Math.abs(values[i]) / most) * SHADES - 0.5));
    if (!(size > 0)) continue; // NaN too
    const name = `${values[i] > 0 ? "plus" : "minus"}${size}`;
    paths[name] = `${paths[name] ?? ""}M${round(x + i * cell)} ${round(y)}h${Math.max(0.8, round(cell))}v${height}h${-Math.max(0.8, round(cell))}z`;
  }
  return Object.entries(paths);
}

/** The size of a component that has the strongest shade: larger than that of 97 of 100 components. */
export function strongest(rows) {
  const sizes = [];
  for (const row of rows) if (row) for (const x of row) if (Number.isFinite(x)) sizes.push(Math.abs(x));
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor((sizes.length - 1) * 0.97)] || 1;
}
