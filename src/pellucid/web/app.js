// The page: a text on one side, the stages that it went through on the other.

import { html, render, useCallback, useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { events, get, hasKey, post, setKey } from "/web/api.js";
import { Changes } from "/web/change.js";
import { Live } from "/web/live.js";
import { infoOf, openRun, textOf } from "/web/recorded.js";
import { STAGES } from "/web/stages.js";
import { Timings } from "/web/timings.js";
import { Tree } from "/web/tree.js";
import { Branches, Text, Write } from "/web/write.js";

const FORM = { text: "The capital of France is", chat: false, max_tokens: 40, temperature: 0.7, top_k: 40, top_p: 0.95, seed: 1 };
const PLACE = { block: 0, head: 0, token: -1 }, QUIET = 400;
const EMPTY = { prompt: [], pieces: [], tree: new Tree(), leaf: 0, text: "" };

/** What the address says: the model, the form, the open stage, the place in it, the changes. Others may have written it. */
function fromAddress() {
  try {
    const { model, form, stage, at, edits, made } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    const like = (given, usual) => Object.fromEntries(Object.entries(usual).filter(([key, value]) => typeof given?.[key] === typeof value).map(([key]) => [key, given[key]]));
    const place = Object.fromEntries(Object.entries(like(at, PLACE)).map(([key, n]) => [key, Number.isSafeInteger(n) ? Math.max(key === "token" ? -1 : 0, n) : PLACE[key]]));
    const changes = (Array.isArray(edits) ? edits : []).filter((one) => typeof one?.point === "string" && typeof one.edit === "string");
    return { model: String(model), form: like(form, FORM), stage: String(stage ?? ""), at: place, edits: changes, made: made === true };
  } catch {
    return {};
  }
}

function App() {
  const said = useMemo(fromAddress, []);
  const [models, setModels] = useState(null), [model, setModel] = useState(null), [info, setInfo] = useState(null), [error, setError] = useState(null);
  const [form, setForm] = useState({ ...FORM, ...said.form }), [run, setRun] = useState(EMPTY), [running, setRunning] = useState(false), [failed, setFailed] = useState(null);
  const [chosen, setChosen] = useState(null), [stage, setStage] = useState(said.stage ?? ""), [at, setAt] = useState({ ...PLACE, ...said.at }), [edits, setEdits] = useState(said.edits ?? []);
  const [recorded, setRecorded] = useState(null);
  const [main, width] = useWidth(), stopper = useRef(null), [turn, setTurn] = useState(0);

  useEffect(() => {
    get("/look/models").then((found) => {
      setModels(found.models);
      setError(null);
      const names = found.models.map((one) => one.name);
      if (said.model && !names.includes(said.model)) setFailed(new Error(`The server does not have the model of this address, ${said.model}.`));
      setModel((before) => before ?? (names.includes(said.model) ? said.model : names[0]));
    }, setError);
  }, [turn]);

  useEffect(() => {
    if (!model) return undefined;
    const stop = new AbortController();
    stopper.current?.abort();
    setRunning(false);
    setInfo(null);
    setRun(EMPTY);
    get(`/look/models/${encodeURIComponent(model)}`, stop.signal).then(setInfo, (one) => one.name !== "AbortError" && setError(one));
    return () => stop.abort();
  }, [model, turn]);

  useEffect(() => {
    if (!model || recorded) return undefined;
    const plain = edits.filter((one) => one.values === undefined); // vectors are too long for an address
    const address = { model, form, stage, at, edits: plain, made: run.prompt.length > 0 };
    const timer = setTimeout(() => history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(address))}`), QUIET);
    return () => clearTimeout(timer);
  }, [model, form, stage, at, edits, run.prompt.length, recorded]);

  const { prompt, pieces: promptPieces, tree, leaf, text } = recorded?.run ?? run;
  const path = tree.path(leaf), ids = [...prompt, ...path.map((one) => one.token)], pieces = [...promptPieces, ...path.map((one) => one.piece)];

  const ask = (more) => ({
    model, edits, temperature: form.temperature, top_k: form.top_k, top_p: form.top_p, seed: form.seed, max_tokens: form.max_tokens, alternatives: 12, ...more,
  });
  const promptOf = () => (form.chat && info?.chat ? { messages: [{ role: "user", content: form.text }] } : { prompt: form.text });

  // Without a key that counts nothing can be asked: the page asks for one.
  const failing = (one) => (one.status === 401 ? setError(one) : setFailed(one));

  /** Ask for tokens after what is there, and add them as they come. */
  const generate = useCallback(async (body, begin) => {
    stopper.current?.abort();
    const stop = (stopper.current = new AbortController());
    setRunning(true);
    setFailed(null);
    setChosen(null);
    let state = begin, planned = 0;
    const draw = () => {
      planned ||= requestAnimationFrame(() => {
        planned = 0;
        if (stopper.current === stop) setRun({ ...state });
      });
    };
    let ended = false;
    try {
      for await (const event of events("POST", "/look/generate", body, stop.signal)) {
        if (event.type === "prompt" && !state.prompt.length) state = { ...state, prompt: event.ids, pieces: event.pieces };
        if (event.type === "token") state = { ...state, leaf: state.tree.add(state.leaf, event).id };
        if (event.type === "end") {
          ended = true;
          state = { ...state, finish: event.finish_reason };
        }
        if (event.type === "error" || event.error) throw new Error(event.error?.message ?? event.message);
        draw();
      }
      if (!ended) throw new Error("The server has ended the answer before its end.");
    } catch (one) {
      if (one.name !== "AbortError" && stopper.current === stop) failing(one);
    }
    cancelAnimationFrame(planned);
    if (stopper.current !== stop) return; // another text has taken its place
    setRunning(false);
    setRun({ ...state });
  }, []);

  const read = async () => {
    const tree = new Tree();
    if (info.generates) return generate(ask(promptOf()), { ...EMPTY, tree, text: form.text });
    stopper.current?.abort();
    const stop = (stopper.current = new AbortController());
    setFailed(null);
    setRunning(true);
    try {
      const found = await post("/look/trace", { model, prompt: form.text, points: ["embed[tokens=0; dims=0]"] }, stop.signal);
      setRun({ ...EMPTY, tree, prompt: found.prompt, pieces: found.pieces, text: form.text });
    } catch (one) {
      if (one.name !== "AbortError") failing(one);
    }
    return stopper.current === stop && setRunning(false);
  };

  // What the address says is made again: the same seed and options give the same tokens.
  useEffect(() => {
    if (info && said.made && said.model === model && form.text) {
      said.made = false;
      read();
    }
  }, [info]);

  const branch = (node, other) => {
    const { tree } = run, made = tree.add(node.parent, { ...other, text: other.piece, alternatives: node.alternatives });
    const before = [...run.prompt, ...tree.path(made.id).map((one) => one.token)];
    generate(ask({ prompt: before }), { ...run, leaf: made.id });
  };
  const follow = (leaf) => {
    setChosen(null);
    setRun({ ...run, leaf: run.tree.end(leaf).id });
  };
  const openFile = async (file) => {
    setFailed(null);
    try {
      const found = await openRun(file);
      stopper.current?.abort();
      setRecorded({ ...found, run: textOf(found), info: infoOf(found) });
      setChosen(null);
      setError(null);
    } catch (one) {
      setFailed(one);
    }
  };
  const edit = (point, change) => setEdits((all) => [...all.filter((one) => one.point !== point), ...(change ? [{ ...change, point }] : [])]);
  const choose = (part) => setAt((before) => ({ ...before, ...part }));
  const replayed = () => {
    const { info: shape } = recorded, last = Math.max(0, ids.length - 2); // the last token was not read
    const look = { model: "", info: shape, ids, pieces, promptLength: prompt.length, text, path, edits: [], recorded };
    const place = { ...at, token: Math.max(0, Math.min(at.token < 0 ? last : at.token, last)), block: Math.min(at.block, Math.max(0, shape.blocks.length - 1)) };
    return STAGES.filter((one) => !one.needsModel && one.has(shape)).map((one) => ({ ...one, body: () => html`<${one.View} look=${look} width=${width} at=${place} choose=${choose} edit=${null} open=${setStage} names=${names} />` }));
  };
  const names = useMemo(() => {
    const found = {};
    pieces.forEach((piece, i) => (found[ids[i]] = piece));
    for (const node of path) for (const one of node.alternatives ?? []) found[one.token] = one.piece;
    return found;
  }, [run, recorded]);

  const whole = useRefOf(running, { ids, pieces, promptLength: run.prompt.length, text: run.text, path });
  if (recorded) return html`<${Header} models=${models} info=${recorded.info} file=${recorded.name} onFile=${openFile} onClose=${() => setRecorded(null)} />
    <main class="columns"><div class="side"><${Replay} recorded=${recorded} path=${path} pieces=${promptPieces} chosen=${chosen} onChoose=${setChosen} error=${failed} /></div>
      <div class="stages" ref=${main}><h2>Inside ${recorded.info.model}</h2>${replayed().map((one) => html`<${Panel} key=${one.id} panel=${one} open=${stage === one.id} onOpen=${() => setStage(stage === one.id ? "" : one.id)} />`)}</div></main>`;
  if (error) return html`<${Header} models=${models} model=${model} onModel=${(name) => { setError(null); setModel(name); }} onFile=${openFile} /><main><p class="error" role="alert">${error.message}</p>${error.status === 401 && html`<${Key} onKey=${() => { setError(null); setTurn((n) => n + 1); }} />`}
    ${error.status !== 401 && html`<button type="button" onClick=${() => { setError(null); setTurn((n) => n + 1); }}>Try again</button>`}</main>`;
  if (!info) return html`<${Header} models=${models} model=${model} onModel=${setModel} /><main><p class="empty" role="status">${model ? `Loading ${model} …` : "Asking the server for its models …"}</p></main>`;
  const token = Math.max(0, Math.min(at.token < 0 ? ids.length - 1 : at.token, ids.length - 1));
  const look = { model, info, edits, form, ...whole };
  const place = { ...at, token: Math.min(token, Math.max(0, whole.ids.length - 1)), block: Math.min(at.block, info.blocks.length - 1) };
  const canEdit = info.generates ? edit : null;
  const panels = [
    ...STAGES.filter((one) => one.has(info)).map((one) => ({ ...one, body: () => (whole.ids.length
      ? html`<${one.View} look=${look} width=${width} at=${place} choose=${choose} edit=${canEdit} open=${setStage} names=${names} />`
      : html`<p class="empty">${info.generates ? "Generate a text" : "Read a sentence"} first.</p>`) })),
    ...(canEdit ? [{ id: "changes", title: edits.length ? `Changes (${edits.length})` : "Changes", about: "Values that are changed while the model runs. Other requests on the server keep every bit of theirs.",
      body: () => html`<${Changes} edits=${edits} onEdit=${edit} ask=${ask(promptOf())} look=${{ ...look, text: form.text }} />` }] : []),
    { id: "timings", title: "Timings", about: "A step is a list of operations. Most read weights: then the memory's rate is the limit; for many tokens at once it is the integer units'.",
      body: () => html`<${Timings} model=${model} info=${info} />` },
    { id: "live", title: "Requests that run", about: "What other clients of the server ask for right now, as far as your key may see it.", body: () => html`<${Live} model=${model} width=${width} />` },
  ];
  return html`<${Header} models=${models} model=${model} onModel=${setModel} info=${info} onFile=${openFile} />
    <main class="columns">
      <div class="side"><${Write} info=${info} form=${form} setForm=${setForm} run=${read} stop=${() => stopper.current?.abort()} running=${running} error=${failed}
        promptPieces=${run.pieces} path=${path} chosen=${chosen} onChoose=${setChosen} onBranch=${branch} finish=${run.finish} siblings=${(node) => run.tree.siblings(node)} onFollow=${follow} />
        <${Branches} tree=${run.tree} running=${running} current=${run.leaf} onFollow=${follow} /></div>
      <div class="stages" ref=${main}><h2>Inside ${info.model}</h2>${panels.map((one) => html`<${Panel} key=${one.id} panel=${one} open=${stage === one.id} onOpen=${() => setStage(stage === one.id ? "" : one.id)} />`)}</div>
    </main>`;
}

/** The text of a recorded run. */
function Replay({ recorded, path, pieces, chosen, onChoose, error }) {
  const { facts, arrays } = recorded;
  return html`<section class="write" aria-labelledby="replay-title"><h2 id="replay-title">A recorded run</h2>
    <p class="note">${Object.keys(arrays).length.toLocaleString()} arrays of ${facts.model.name}; it has ended: ${facts.finish_reason ?? "not yet"}.${facts.edits.length > 0 && ` Changed: ${facts.edits.join(", ")}`}</p>
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    <${Text} promptPieces=${pieces} path=${path} chosen=${chosen} onChoose=${onChoose} running=${false} /></section>`;
}

function Panel({ panel, open, onOpen }) {
  return html`<section class="panel" id=${`stage-${panel.id}`}><h3><button type="button" aria-expanded=${open} aria-controls=${open ? `body-${panel.id}` : null} onClick=${onOpen}>${panel.title}</button></h3>
    ${open && html`<div id=${`body-${panel.id}`} class="body"><p class="about">${panel.about}</p>${panel.body()}</div>`}</section>`;
}

function Header({ models, model, onModel, info, file, onFile, onClose }) {
  return html`<header><h1>Pellucid</h1>
    ${file && html`<span class="facts">${file}</span><button type="button" onClick=${onClose}>close the file</button>`}
    ${models && !file && html`<label class="model">Model <select value=${model} onChange=${(event) => onModel?.(event.target.value)}>${models.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select></label>`}
    ${info && html`<span class="facts">${info.family}, ${info.blocks.length} blocks, width ${info.width.toLocaleString()}, ${info.vocabulary.toLocaleString()} tokens</span>`}
    ${onFile && html`<label class="file">open a recorded run <input type="file" accept=".run,.safetensors" onChange=${(event) => { const [one] = event.target.files; event.target.value = ""; if (one) onFile(one); }} /></label>`}
    ${hasKey() && html`<button type="button" class="quiet" onClick=${() => { setKey(""); location.reload(); }}>forget the key</button>`}</header>`;
}

function Key({ onKey }) {
  const [value, setValue] = useState(""), [wrong, setWrong] = useState("");
  return html`<form class="key" onSubmit=${(event) => { event.preventDefault(); try { setKey(value.trim()); onKey(); } catch (one) { setWrong(one.message); } }}>
    <label>Key <input type="password" autocomplete="off" value=${value} onInput=${(event) => setValue(event.target.value)} /></label><button type="submit" class="main">Use this key</button>${wrong && html`<span class="error" role="alert">${wrong}</span>`}</form>`;
}

/** What was true before something began, for as long as it lasts. */
function useRefOf(lasts, now) {
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

render(html`<${App} />`, document.getElementById("app"));
document.querySelector("#app > p.empty")?.remove();
