// The page: a text on one side, the stages that it went through on the other.

import { Component, html, render, useCallback, useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { FORM, PLACE, fromAddress, toAddress } from "/web/address.js";
import { get, hasKey, setKey } from "/web/api.js";
import { Changes } from "/web/change.js";
import { Live } from "/web/live.js";
import { openRun, readRun } from "/web/recorded.js";
import { STAGES } from "/web/stages.js";
import { labelled } from "/web/text.js";
import { Timings } from "/web/timings.js";
import { Branches, Text, Write } from "/web/write.js";
import { asked, promptOf, useWriting } from "/web/writing.js";

const QUIET = 400; // milliseconds before the address follows

/** What both kinds of page have: where one is, and a file that is open. */
function useView(said) {
  const [stage, setStage] = useState(said.stage ?? ""), [at, setAt] = useState({ ...PLACE, ...said.at });
  const choose = useCallback((part) => setAt((before) => ({ ...before, ...part })), []);
  const [main, width] = useWidth();
  return { stage, setStage, at, choose, main, width };
}

function App({ report }) {
  const said = useMemo(() => fromAddress(location.hash), []);
  const [recorded, setRecorded] = useState(report), [failed, setFailed] = useState(null);
  const openFile = async (file) => {
    setFailed(null);
    try {
      setRecorded(await openRun(file));
    } catch (error) {
      setFailed(error);
    }
  };
  const onFile = { onFile: openFile, fileError: failed };
  // The page of the server stays what it is while a file is open.
  return html`${recorded && html`<${Guarded} key=${recorded.number} body=${() => html`<${Recorded} recorded=${recorded} ...${onFile} onClose=${report ? null : () => setRecorded(null)} />`} />`}
    ${!report && html`<${Served} said=${said} isHidden=${!!recorded} ...${onFile} />`}`;
}

/** A run of a file: what it holds is all there is to see. */
function Recorded({ recorded, onFile, fileError, onClose }) {
  const { facts, arrays, info, text } = recorded, { stage, setStage, at, choose, main, width } = useView({});
  const path = text.tree.path(text.leaf), ids = [...text.prompt, ...path.map((one) => one.token)], names = namesOf(ids, facts.pieces, path), pieces = labelled(facts.pieces, text.characters);
  const last = Math.max(0, ids.length - 2); // the last token was not read
  const look = { model: "", info, ids, pieces, promptLength: text.prompt.length, text: facts.question ?? "", path, edits: [], recorded, names };
  const place = { ...at, token: Math.min(at.token < 0 ? last : at.token, last), block: Math.min(at.block, Math.max(0, info.blocks.length - 1)) };
  const panels = STAGES.filter((one) => one.has(info) && (!one.asks || recorded.answers.has(one.asks)))
    .map((one) => ({ ...one, body: () => html`<${one.View} look=${look} width=${width} at=${place} choose=${choose} edit=${null} open=${opens(setStage)} />` }));
  return html`<${Header} info=${info} file=${recorded.name} onFile=${onFile} onClose=${onClose} />
    <main class="columns"><div class="side"><section class="write" aria-labelledby="replay-title"><h2 id="replay-title">A recorded run</h2>
      <p class="note">${Object.keys(arrays).length.toLocaleString()} arrays of ${facts.model.name}; it has ended: ${facts.finish_reason ?? "not yet"}.${facts.edits.length > 0 && ` Changed: ${facts.edits.join(", ")}`}</p>
      ${(facts.notes ?? []).map((note, i) => html`<p class="note" key=${i}>${note}</p>`)}
      ${fileError && html`<p class="error" role="alert">${fileError.message}</p>`}
      <${Text} labels=${pieces} path=${path} chosen=${at.chosen < 0 ? null : at.chosen} onChoose=${(chosen) => choose({ chosen: chosen ?? -1 })} running=${false} /></section></div>
      <${Panels} main=${main} info=${info} panels=${panels} stage=${stage} setStage=${setStage} /></main>`;
}

/** The models of a server. */
function Served({ said, isHidden, onFile, fileError }) {
  const [models, setModels] = useState(null), [model, setModel] = useState(null), [info, setInfo] = useState(null), [error, setError] = useState(null), [turn, setTurn] = useState(0);
  const [agreed, setAgreed] = useState(false), [form, setForm] = useState({ ...FORM, ...said.form }), [edits, setEdits] = useState(said.edits ?? []), { stage, setStage, at, choose, main, width } = useView(said);
  // Without a key that counts nothing can be asked: the page asks for one.
  const onError = (one) => one.status === 401 && (setError(one), true);
  const writing = useWriting({ model, info, onError }), { run, running } = writing;
  const retry = () => {
    setError(null);
    setTurn((n) => n + 1);
  };

  useEffect(() => {
    get("/look/models").then((found) => {
      setModels(found.models);
      setError(null);
      const names = found.models.map((one) => one.name);
      if (said.model && !names.includes(said.model)) {
        said.made = null;
        writing.setFailed(new Error(`The server does not have the model of this address, ${said.model}.`));
      }
      setModel((before) => before ?? (names.includes(said.model) ? said.model : names[0]));
    }, setError);
  }, [turn]);

  // Any site can open this page at an address: what the address asks for begins with a click.
  const asksToLoad = !agreed && said.model === model && models?.find((one) => one.name === model)?.loaded === false;
  useEffect(() => {
    if (!model || asksToLoad) return undefined;
    const stop = new AbortController();
    writing.clear();
    setInfo(null);
    get(`/look/models/${encodeURIComponent(model)}`, stop.signal).then(setInfo, (one) => one.name !== "AbortError" && setError(one));
    return () => stop.abort();
  }, [model, turn, asksToLoad]);

  const offered = info && said.model === model && said.made?.[0]?.form.text ? said.made : null;
  const again = () => {
    said.made = null;
    if (info.generates) writing.again(offered, said.leaf);
    else writing.write(offered[0].form, edits);
  };

  const address = () => toAddress({ model, form, stage, at, edits, made: run.made, leaf: run.leaf });
  useEffect(() => {
    if (!info || running || offered) return undefined;
    const timer = setTimeout(() => history.replaceState(null, "", address()[0]), QUIET);
    return () => clearTimeout(timer);
  }, [model, info, form, stage, at, edits, run.made, run.leaf, running, offered]);

  const { tree, leaf } = run, path = tree.path(leaf), ids = [...run.prompt, ...path.map((one) => one.token)], pieces = [...run.pieces, ...path.map((one) => one.piece)];
  const labels = labelled(pieces, [...run.characters, ...path.flatMap((one) => one.character ?? [])]);
  const text = useWhile(running, useMemo(() => ({ ids, pieces: labels, promptLength: run.prompt.length, text: run.text, path, names: namesOf(ids, pieces, path) }), [run]));
  const edit = info?.generates ? (point, change) => setEdits((all) => [...all.filter((one) => one.point !== point), ...(change ? [{ ...change, point }] : [])]) : null;
  const changeModel = (name) => {
    said.made = null;
    setError(null);
    setEdits([]);
    setModel(name);
  };
  const header = (more) => html`<${Header} models=${models} model=${model} onModel=${changeModel} onFile=${onFile} ...${more} />`;
  if (isHidden) return null;
  if (error) return html`${header()}<main><p class="error" role="alert">${error.message}</p>
    ${error.status === 401 ? html`<${Key} onKey=${retry} />` : html`<button type="button" onClick=${retry}>Try again</button>`}</main>`;
  if (asksToLoad) return html`${header()}<main><p role="status">This address is about ${model}, which is not in the server's memory. <button type="button" onClick=${() => setAgreed(true)}>Load it</button></p></main>`;
  if (!info) return html`${header()}<main><p class="empty" role="status">${model ? `Loading ${model} …` : "Asking the server for its models …"}</p></main>`;
  const look = { model, info, edits: edit ? edits : [], form, ...text };
  const last = Math.max(0, text.ids.length - 1), place = { ...at, token: Math.min(at.token < 0 ? last : at.token, last), block: Math.min(at.block, info.blocks.length - 1) };
  const clicked = (chosen) => choose({ chosen: chosen ?? -1 }), chosen = at.chosen >= 0 && path[at.chosen] ? at.chosen : null;
  const write = () => {
    said.made = null;
    choose({ chosen: -1 });
    writing.write(form, edits);
  };
  const follow = (node) => {
    choose({ chosen: -1 });
    writing.follow(node);
  };
  const branch = (node, other) => {
    choose({ chosen: -1 });
    writing.branch(node.parent, other.token, form, edits);
  };
  const panels = [
    ...STAGES.filter((one) => one.has(info)).map((one) => ({ ...one, body: () => (text.ids.length
      ? html`<${one.View} look=${look} width=${width} at=${place} choose=${choose} edit=${edit} open=${opens(setStage)} />`
      : html`<p class="empty">${info.generates ? "Generate a text" : "Read a sentence"} first.</p>`) })),
    ...(edit ? [{ id: "changes", title: edits.length ? `Changes (${edits.length})` : "Changes", about: "Values that are changed while the model runs. Other requests on the server keep every bit of theirs.",
      body: () => html`<${Changes} edits=${edits} onEdit=${edit} ask=${asked(model, form, edits, promptOf(form, info))} look=${{ ...look, text: form.text }} />` }] : []),
    { id: "timings", title: "Timings", about: "A step is a list of operations. Most read weights: then the memory's rate is the limit; for many tokens at once it is the integer units'.",
      body: () => html`<${Timings} model=${model} info=${info} />` },
    { id: "live", title: "Requests that run", about: "What other clients of the server ask for right now, as far as your key may see it.", body: () => html`<${Live} model=${model} width=${width} />` },
  ];
  return html`${header({ info })}
    <main class="columns">
      <div class="side"><${Write} info=${info} form=${form} setForm=${setForm} run=${write} stop=${writing.stop} running=${running} error=${writing.failed ?? fileError}
        labels=${labels} isOfOthers=${run.made.length > 0 && JSON.stringify(run.made.at(-1).edits) !== JSON.stringify(edits)} path=${path} chosen=${chosen} onChoose=${clicked} onBranch=${branch} finish=${run.finish} notices=${run.notices} siblings=${(node) => tree.siblings(node)} onFollow=${follow}
        offer=${offered && again} link=${run.made.length > 0 && (() => { const [hash, whole] = address(); return [`${location.origin}/${hash}`, whole]; })} />
        <${Branches} tree=${tree} running=${running} current=${leaf} onFollow=${follow} /></div>
      <${Panels} main=${main} info=${info} panels=${panels} stage=${stage} setStage=${setStage} />
    </main>`;
}

/** A function that opens the first of some stages that is there, and goes to it. */
function opens(setStage) {
  return (...ids) => {
    const id = ids.find((one) => document.getElementById(`stage-${one}`));
    if (!id) return;
    setStage(id);
    requestAnimationFrame(() => document.querySelector(`#stage-${id} h3 button`)?.focus());
  };
}

/** The texts of tokens that are known already, by their numbers. */
function namesOf(ids, pieces, path) {
  const found = {};
  pieces.forEach((piece, i) => (found[ids[i]] = piece));
  for (const node of path) for (const one of node.alternatives ?? []) found[one.token] = one.piece;
  return found;
}

function Panels({ main, info, panels, stage, setStage }) {
  return html`<div class="stages" ref=${main}><h2>Inside ${info.model}</h2>${info.notice && html`<p class="note" role="status">${info.notice}</p>`}${panels.map((one) => html`<${Panel} key=${one.id} panel=${one} open=${stage === one.id} onOpen=${() => setStage(stage === one.id ? "" : one.id)} />`)}</div>`;
}

/** Draws its children, or says that they cannot be drawn: a file may hold anything. */
class Guarded extends Component {
  componentDidCatch(error) {
    this.setState({ error, of: this.props.body });
  }

  render({ body }, { error, of }) {
    return error && of === body ? html`<p class="error" role="alert">This cannot be shown: ${error.message}</p>` : html`<${Body} body=${body} />`;
  }
}

function Body({ body }) {
  return body();
}

function Panel({ panel, open, onOpen }) {
  return html`<section class="panel" id=${`stage-${panel.id}`}><h3><button type="button" aria-expanded=${open} aria-controls=${open ? `body-${panel.id}` : null} onClick=${onOpen}>${panel.title}</button></h3>
    ${open && html`<div id=${`body-${panel.id}`} class="body"><p class="about">${panel.about}</p><${Guarded} body=${panel.body} /></div>`}</section>`;
}

function Header({ models, model, onModel, info, file, onFile, onClose }) {
  return html`<header><h1>Pellucid</h1>
    ${file && html`<span class="facts">${file}</span>`}${onClose && html`<button type="button" onClick=${onClose}>close the file</button>`}
    ${models && !file && html`<label class="model">Model <select value=${model} onChange=${(event) => onModel(event.target.value)}>${models.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select></label>`}
    ${info && html`<span class="facts">${info.family}, ${info.blocks.length} blocks, width ${info.width.toLocaleString()}, ${info.vocabulary.toLocaleString()} tokens</span>`}
    <label class="file">open a recorded run <input type="file" accept=".run,.safetensors" onChange=${(event) => { const [one] = event.target.files; event.target.value = ""; if (one) onFile(one); }} /></label>
    ${hasKey() && html`<button type="button" class="quiet" onClick=${() => { setKey(""); location.reload(); }}>forget the key</button>`}</header>`;
}

function Key({ onKey }) {
  const [value, setValue] = useState(""), [wrong, setWrong] = useState("");
  return html`<form class="key" onSubmit=${(event) => { event.preventDefault(); try { setKey(value.trim()); onKey(); } catch (one) { setWrong(one.message); } }}>
    <label>Key <input type="password" autocomplete="off" value=${value} onInput=${(event) => setValue(event.target.value)} /></label><button type="submit" class="main">Use this key</button>${wrong && html`<span class="error" role="alert">${wrong}</span>`}</form>`;
}

/** What was true before something began, for as long as it lasts. */
function useWhile(lasts, now) {
  const kept = useRef(now);
  if (!lasts) kept.current = now;
  return kept.current;
}

/** The width of an element in whole pixels. */
function useWidth() {
  const [width, setWidth] = useState(600), seen = useRef(null);
  const attach = useCallback((element) => {
    seen.current?.disconnect();
    if (!element) return;
    seen.current = new ResizeObserver(([one]) => setWidth(Math.max(200, Math.floor(one.contentRect.width) - 34)));
    seen.current.observe(element);
  }, []);
  return [attach, width];
}

// A report is this page with a run in it (trace/report.py).
const held = document.getElementById("run"), app = document.getElementById("app");
addEventListener("hashchange", () => location.reload()); // another link was opened in this tab
(held ? readRun(held) : Promise.resolve(null)).then(
  (report) => {
    render(html`<${App} report=${report} />`, app);
    document.querySelector("#app > p.empty")?.remove();
  },
  (error) => (app.textContent = `The report cannot be opened: ${error.message}`),
);
