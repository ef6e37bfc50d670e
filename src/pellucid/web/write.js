// Write and watch: a prompt, the tokens that come, what else might have come, and branches.

import { Component, html, useMemo, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { LIMITS } from "/web/address.js";
import { useStop } from "/web/keys.js";
import { PART, nameOf, percent, shown } from "/web/text.js";

/** The step of a token's colour: 0 is sure, 4 is a surprise. */
function surprise(p) {
  return Number.isNaN(p) || p >= 0.8 ? 0 : p >= 0.4 ? 1 : p >= 0.15 ? 2 : p >= 0.03 ? 3 : 4;
}

const ENDS = { stop: "The model has ended the text.", length: "As many tokens as were asked for, or as the context holds.", time: "The time is over." };

export function Write({ info, form, setForm, run, stop, running, error, labels, isOfOthers, path, chosen, onChoose, onBranch, siblings, onFollow, finish, notices, link, offer }) {
  const set = (part) => setForm({ ...form, ...part });
  const submit = (event) => {
    event.preventDefault();
    if (!running) run();
  };
  return html`<section class="write" aria-labelledby="write-title"><h2 id="write-title">Write and watch</h2>
    <form onSubmit=${submit} noValidate>
      <label for="prompt">${info.generates ? (form.chat ? "Message" : "Text to continue") : "Sentence"}</label>
      <textarea id="prompt" rows="4" value=${form.text} spellcheck="false" onInput=${(event) => set({ text: event.target.value })}
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea>
      ${info.generates && html`<details><summary>How the text is made</summary><div class="options">
        ${info.chat && html`<label><input type="checkbox" checked=${form.chat} onChange=${(event) => set({ chat: event.target.checked })} /> as a chat message</label>`}
        ${[["tokens", "max_tokens", 1], ["temperature", "temperature", 0.05], ["top-k (0: all)", "top_k", 1], ["top-p", "top_p", 0.01], ["seed", "seed", 1]].map(([label, key, step, [low, high] = LIMITS[key]]) => html`
          <label key=${key}>${label} <input type="number" min=${low} max=${high} step=${step} value=${form[key]} onChange=${(event) => { event.target.value = Math.max(low, Math.min(high, +event.target.value || low)); set({ [key]: +event.target.value }); }} /></label>`)}
      </div></details>`}
      <div class="bar"><button type="submit" class="main" disabled=${running || !form.text}>${info.generates ? "Generate" : "Read"}</button>
        ${running && html`<button type="button" onClick=${stop}>Stop</button>`}${link && !running && html`<${CopyLink} link=${link} />`}</div>
    </form>
    ${offer && !running && html`<p class="note" role="status">This address tells how a text was made. <button type="button" onClick=${offer}>Make it again</button></p>`}
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    <p class="note" role="status">${running ? "" : ENDS[finish] ?? ""}</p>
    ${!running && notices.map((one) => html`<p class="note" role="status" key=${one}>${one}</p>`)}
    ${isOfOthers && !running && html`<p class="note" role="status">This text was made with other changes than those that are chosen now, which the stages show.</p>`}
    ${labels.length > 0 && html`<${Text} labels=${labels} path=${path} chosen=${chosen} onChoose=${onChoose} running=${running} />`}
    ${chosen !== null && path[chosen] && html`<${Alternatives} node=${path[chosen]} siblings=${siblings(path[chosen])} onBranch=${onBranch} onFollow=${onFollow} running=${running} />`}
    ${info.generates && path.length > 0 && html`<p class="legend-line" aria-hidden="true">${["sure", "likely", "open", "unlikely", "a surprise"].map((text, i) => html`<span key=${i} class=${`token s${i}`}>${text}</span>`)}</p>`}
  </section>`;
}

/** The address of what is seen, to be sent to others. */
function CopyLink({ link }) {
  const [said, setSaid] = useState("");
  const copy = () => {
    const [text, isWhole] = link(), refused = () => setSaid("The browser does not let the page copy: copy its address.");
    const copied = () => setSaid(isWhole ? "The link is in the clipboard." : "The link is in the clipboard, without what is too long for an address.");
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(copied, refused);
    else refused();
  };
  return html`<button type="button" class="quiet" onClick=${copy}>copy a link to this view</button><span class="note" role="status">${said}</span>`;
}

const CHUNK = 40; // tokens that are drawn again together

/** A text; `labels` are those of the prompt's tokens, and of the tokens of the path after it. */
export function Text({ labels, path, chosen, onChoose, running }) {
  const before = labels.length - path.length, prompt = useMemo(() => labels.slice(0, before), [labels.slice(0, before).join("\0")]);
  const stop = useStop(".token", path.length), chunks = [], within = (at, first) => (at !== null && at >= first && at < first + CHUNK ? at : null);
  for (let first = 0; first < path.length; first += CHUNK) chunks.push(first);
  return html`<div class="text" role="group" aria-label="the text, token by token" aria-live="off" ...${stop.on}><${Chunk} key="prompt" prompt=${prompt} nodes=${EMPTY} labels=${EMPTY} first=${0} chosen=${null} />${chunks.map((first) => html`<${Chunk} key=${first}
    nodes=${path.slice(first, first + CHUNK)} labels=${labels.slice(before + first, before + first + CHUNK)} first=${first} chosen=${within(chosen, first)} stop=${within(stop.at, first)} onChoose=${onChoose} />`)}${running && html`<span class="cursor" aria-hidden="true"></span>`}</div>`;
}

const EMPTY = [];

/** Tokens that follow each other. They are drawn again only if they are others, or another one is chosen. */
class Chunk extends Component {
  shouldComponentUpdate({ prompt, nodes, labels, chosen, stop }) {
    const mine = this.props;
    return prompt !== mine.prompt || chosen !== mine.chosen || stop !== mine.stop || nodes.length !== mine.nodes.length || nodes.some((node, at) => node !== mine.nodes[at] || labels[at] !== mine.labels[at]);
  }

  render({ prompt, nodes, labels, first, chosen, stop, onChoose }) {
    if (prompt) return html`<span class="prompt">${prompt.filter((one) => one !== PART).map(shownText).join("")}</span>`;
    return html`<span>${nodes.map((node, at) => html`<${Token} key=${node.id} node=${node} label=${labels[at]} at=${first + at} chosen=${first + at === chosen} stop=${first + at === stop} onChoose=${onChoose} />`)}</span>`;
  }
}

// Signs for what cannot be seen; spaces and line ends stay what they are.
function shownText(piece) {
  return piece.split(/([ \n])/).map((part) => (part === " " || part === "\n" || part === "" ? part : shown(part))).join("");
}

/** A token. A line end has a sign too: there would be nothing to click. */
function Token({ node, label, at, chosen, stop, onChoose }) {
  const choose = () => onChoose(chosen ? null : at);
  return html`<span role="button" tabindex=${stop ? 0 : -1} class=${`token s${surprise(node.probability)}`} aria-pressed=${chosen} title=${`${shown(node.piece)}  ${Number.isNaN(node.probability) ? "" : percent(node.probability)}`}
    onClick=${choose} onKeyDown=${(event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose())}>${shownText(label).replaceAll("\n", "⏎\n")}</span>`;
}

function Alternatives({ node, siblings, onBranch, onFollow, running }) {
  return html`<div class="alternatives"><h3>In place of ${shown(nameOf(node))}</h3>
    <ul>${node.alternatives.map((one) => {
      const taken = siblings.find((other) => other.token === one.token);
      return html`<li key=${one.token}><span class="filled" style=${{ width: `${(one.probability * 100).toFixed(1)}%` }}></span>
        <span class="piece">${shown(nameOf(one))}</span><span class="num">${percent(one.probability)}</span>
        ${one.token === node.token ? html`<span class="here">here</span>` : html`
          <button type="button" class="quiet" disabled=${running} onClick=${() => (taken ? onFollow(taken) : onBranch(node, one))}>${taken ? "go there" : "branch"}</button>`}</li>`;
    })}</ul></div>`;
}

/** The branches as a tree of texts; the one that is shown is marked. */
export function Branches({ tree, running, current, onFollow }) {
  const leaves = useMemo(() => (tree.forks ? tree.leaves() : []), [tree, tree.nodes.size]);
  if (leaves.length < 2) return null;
  return html`<section class="branches" aria-labelledby="branches-title"><h3 id="branches-title">Branches</h3><ul>${leaves.map(({ leaf, depth, text }) => html`
    <li key=${leaf.id} style=${{ marginLeft: `${Math.min(depth, 8) * 10}px` }}><button type="button" class="quiet" disabled=${running} aria-pressed=${leaf.id === current} onClick=${() => onFollow(leaf)}>${shown(text)}</button></li>`)}</ul></section>`;
}
