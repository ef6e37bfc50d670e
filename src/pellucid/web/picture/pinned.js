// Two pictures to compare: a pinned one, which keeps its text, model and changes, and the one that follows the selection.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { shortened } from "/web/picture/export.js";
import { NARROW } from "/web/picture/layout.js";
import { Picture, useCommonScales } from "/web/picture/picture.js";
import { within } from "/web/state/place.js";

const GAP = 12; // pixels between the two, as in style.css

/** Keep what is asked here: {look, text, at, source} of the picture as it is. */
function pinOf(setPinned) {
  return { name: "Pin", label: "keep this picture, to compare it with another text, head or model", onClick: setPinned };
}

/** The picture, and the pinned one before it: beside it where both have room, else above it. */
export function Pictures({ pinned, setPinned, ...living }) {
  const common = useCommonScales(), { width, height, scale } = living, half = (width - GAP) / 2, isBeside = !!pinned && half >= NARROW * scale;
  const shape = { width: isBeside ? half : width, height, scale, common: pinned && common };
  // A click in the pinned picture moves it alone: nothing else follows, and it follows nothing.
  const moved = (one, part) => ({ ...one, at: within({ ...one.at, ...part }, one.text.ids.length, one.look.info.blocks) });
  const move = ({ panel, stop, ...part }) => setPinned((one) => one && moved(one, part));
  return html`<div class=${`pictures ${isBeside ? "paired" : ""}`}>
    ${pinned && html`<${Picture} key="pinned" ...${pinned} ...${shape} live=${null} choose=${move} edit=${null} pinned
      title=${`Pinned: ${titleOf(pinned)}`} pin=${{ name: "Unpin", label: "show one picture again", onClick: () => setPinned(null) }} />`}
    <${Picture} key="living" ...${living} ...${shape} pin=${pinOf(setPinned)} title=${pinned && living.text.ids.length > 0 && titleOf(living)} /></div>`;
}

function titleOf({ look, text }) {
  return `${look.model || look.info.model} · “${shortened(text.labels)}”${look.edits.length ? " · changed" : ""}`;
}
