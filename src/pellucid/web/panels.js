// The panels below the picture: each stage in depth. A new panel is a file and a line here.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { Guarded } from "/web/parts/show.js";
import { attention } from "/web/panels/attention.js";
import { attribution } from "/web/panels/attribution.js";
import { beams } from "/web/panels/beams.js";
import { blocks } from "/web/panels/blocks.js";
import { detokenizer } from "/web/panels/detokenizer.js";
import { embeddings } from "/web/panels/embeddings.js";
import { experts, feedforward, recurrent } from "/web/panels/feedforward.js";
import { lens } from "/web/panels/lens.js";
import { positions } from "/web/panels/positions.js";
import { sampling } from "/web/panels/sampling.js";
import { source } from "/web/panels/source.js";
import { tokens } from "/web/panels/tokens.js";

export const STAGES = [source, tokens, embeddings, positions, blocks, attention, feedforward, experts, recurrent, lens, attribution, sampling, beams, detokenizer];

const PEEK = 160; // pixels of a panel that can be seen at least when it opens

/** Tabs of all panels, once a panel is open or the list is asked for, and the open panel. A panel is {id, title, about, body}. During the tour the page stays at the tour's card. */
export function Panels({ panels, open, choose, notice, model, isToured }) {
  const shown = panels.find((one) => one.id === open), [isListed, setListed] = useState(false), close = () => {
    setListed(true);
    choose({ panel: "" });
    document.getElementById(`tab-${open}`)?.focus();
  };
  // A panel that a title of the picture opens is below the window: its tabs move to the middle, so that both are seen.
  const tabs = useRef(null), before = useRef(open);
  useEffect(() => {
    const isNew = before.current !== open && shown && !isToured && tabs.current;
    before.current = open;
    if (isNew && tabs.current.getBoundingClientRect().bottom > innerHeight - PEEK) tabs.current.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }, [open]);
  const onKeyDown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target.getAttribute("role") !== "tab") return;
    event.preventDefault();
    const all = [...event.currentTarget.querySelectorAll("[role=tab]")];
    all[(all.indexOf(event.target) + by + all.length) % all.length].focus();
  };
  if (!shown && !isListed) return html`<section class="stages" aria-label=${`inside ${model}`}>${notice && html`<p class="note" role="status">${notice}</p>`}<button type="button" class="all" aria-expanded="false" onClick=${() => setListed(true)}>Stages in depth</button></section>`;
  return html`<section class="stages" aria-label=${`inside ${model}`}>${notice && html`<p class="note" role="status">${notice}</p>`}
    <div class="tabs" role="tablist" aria-label="stages in depth" ref=${tabs} onKeyDown=${onKeyDown}>${panels.map((one, i) => html`<button type="button" role="tab" key=${one.id} id=${`tab-${one.id}`} tabindex=${one === shown || (!shown && !i) ? 0 : -1} aria-selected=${one === shown} aria-controls=${one === shown ? `stage-${one.id}` : null}
      onClick=${() => choose({ panel: one.id })}>${one.title}</button>`)}</div>
    ${shown && html`<div class="panel" role="tabpanel" id=${`stage-${shown.id}`} aria-labelledby=${`tab-${shown.id}`} key=${shown.id}><h3 class="hidden">${shown.title}</h3><button type="button" class="close" aria-label=${`close ${shown.title}`} title="close" onClick=${close}>×</button><p class="about">${shown.about}</p><div class="body"><${Guarded} body=${shown.body} /></div></div>`}</section>`;
}
