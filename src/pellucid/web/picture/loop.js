// The replay as an animated PNG: mails, documents and browsers play it without a script, again and again.
// APNG: PNG, third edition (acTL, fcTL and fdAT chunks).

import { colour } from "/web/parts/draw.js";

const FRAMES = 80, FRAME = 100, LAST = 2000; // pictures of a step; milliseconds of each, and of the finished picture
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10], RGBA = 6, OVER = 1, THOUSANDTHS = 1000;

const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crcOf(bytes) {
  let crc = 0xffffffff;
  for (const one of bytes) crc = CRC[(crc ^ one) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Numbers of 1, 2 or 4 bytes, the highest byte first: [[value, bytes], …]. */
function packed(numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [, bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [value, bytes] of numbers) {
    if (bytes === 4) view.setUint32(at, value);
    else if (bytes === 2) view.setUint16(at, value);
    else view.setUint8(at, value);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}

/** A chunk of a PNG file. */
function chunk(kind, ...data) {
  const size = data.reduce((sum, one) => sum + one.length, 0), bytes = new Uint8Array(size + 12);
  bytes.set(packed([[size, 4]]));
  bytes.set([...kind].map((one) => one.charCodeAt(0)), 4);
  let at = 8;
  for (const one of data) {
    bytes.set(one, at);
    at += one.length;
  }
  bytes.set(packed([[crcOf(bytes.subarray(4, at)), 4]]), at);
  return bytes;
}

/** The pixels that differ from the picture before, as {x, y, width, height, rows}: rows of a PNG, without filters. The others in their rectangle are transparent. */
function differing(pixels, before, width, height) {
  let [left, top, right, low] = [width, height, -1, -1];
  for (let i = 0; i < pixels.length; i++) {
    if (before && pixels[i] === before[i]) continue;
    const x = i % width, y = (i - x) / width;
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    low = y;
  }
  if (low < 0) return null;
  const box = { x: left, y: top, width: right - left + 1, height: low - top + 1 }, rows = new Uint8Array((4 * box.width + 1) * box.height);
  const line = new Uint32Array(box.width), bytes = new Uint8Array(line.buffer);
  for (let y = 0; y < box.height; y++) {
    for (let x = 0; x < box.width; x++) {
      const i = (top + y) * width + left + x;
      line[x] = before && pixels[i] === before[i] ? 0 : pixels[i];
    }
    rows.set(bytes, (4 * box.width + 1) * y + 1);
  }
  return { ...box, rows };
}

const deflated = async (bytes) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer());

/** An animated PNG of pictures that come one after the other: {pixels (Uint32Array), milliseconds}. Equal pictures become one that lasts longer. */
export async function animated(pictures, width, height) {
  const frames = [];
  let before = null;
  for await (const { pixels, milliseconds } of pictures) {
    const found = differing(pixels, before, width, height);
    if (!found) frames.at(-1).milliseconds += milliseconds;
    else frames.push({ ...found, rows: null, data: await deflated(found.rows), milliseconds });
    before = pixels;
  }
  const parts = [new Uint8Array(SIGNATURE), chunk("IHDR", packed([[width, 4], [height, 4], [8, 1], [RGBA, 1], [0, 1], [0, 1], [0, 1]])), chunk("acTL", packed([[frames.length, 4], [0, 4]]))];
  let number = 0;
  for (const { x, y, width: wide, height: high, data, milliseconds } of frames) {
    parts.push(chunk("fcTL", packed([[number++, 4], [wide, 4], [high, 4], [x, 4], [y, 4], [milliseconds, 2], [THOUSANDTHS, 2], [0, 1], [OVER, 1]])));
    parts.push(number === 1 ? chunk("IDAT", data) : chunk("fdAT", packed([[number++, 4]]), data));
  }
  return new Blob([...parts, chunk("IEND")], { type: "image/png" });
}

const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

/** The replay of a figure. `draw()` returns the figure as it is, {text, width, height} of an SVG; `onFrame(done, all)` hears how far it is. */
export async function loopOf(replay, draw, onFrame) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true }), size = draw();
  Object.assign(canvas, { width: size.width, height: size.height });
  async function* pictures() {
    for (let n = 0; n <= FRAMES; n++) {
      replay.seek(n / FRAMES);
      await drawn();
      const image = new Image();
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(draw().text)}`;
      await image.decode();
      context.fillStyle = colour("paper");
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(image, 0, 0);
      onFrame(n, FRAMES);
      yield { pixels: new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer), milliseconds: n < FRAMES ? FRAME : LAST };
    }
  }
  try {
    return await animated(pictures(), size.width, size.height);
  } finally {
    replay.seek(1);
  }
}
