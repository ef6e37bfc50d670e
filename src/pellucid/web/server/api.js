// What the page asks of the server, and the arrays that come back.

// A page inside of another may have no storage.
export const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return { getItem: () => null, setItem() {}, removeItem() {} };
  }
})();
let key = storage.getItem("pellucid.key") || "";

/** The key that requests have; it is kept for this tab alone. */
export function setKey(value) {
  if (/[^\x20-\x7e]/.test(value)) throw new Error("A key has letters, digits and signs of ASCII alone.");
  key = value;
  if (value) storage.setItem("pellucid.key", value);
  else storage.removeItem("pellucid.key");
}

export function hasKey() {
  return key !== "";
}

/** An answer that is an error: its status and the server's own message. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const EDIT = ["edit", "point", "factor", "values", "shape"]; // the fields that the server knows of a change; the page keeps more beside them

/** A body as the server takes it. */
function asTaken(body) {
  if (!body?.edits) return body;
  return { ...body, edits: body.edits.map((one) => Object.fromEntries(EDIT.filter((name) => one[name] !== undefined).map((name) => [name, one[name]]))) };
}

async function ask(method, path, body, signal) {
  const headers = { Accept: "application/json, text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(asTaken(body)) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    const found = await response.json();
    message = found.error?.message ?? found.message ?? message;
  } catch {
    // An answer that is no JSON has no message.
  }
  throw new ServerError(response.status, message);
}

export async function get(path, signal) {
  return (await ask("GET", path, undefined, signal)).json();
}

export async function post(path, body, signal) {
  return (await ask("POST", path, body, signal)).json();
}

/** The events of a stream, {type, ...}, as they come. */
export async function* events(method, path, body, signal) {
  const response = await ask(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parsed(part);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(part) {
  let type = "", data = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) type = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (!data || data === "[DONE]") return null;
  const event = JSON.parse(data);
  return { ...event, type: event.type ?? type };
}

/** An array of the server, {shape, dtype, data}: its numbers in a row, with the shape. */
export function array({ shape, dtype, data }) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const values = dtype === "int32" ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
  return shaped(values, shape);
}

/** Numbers in a row with their shape; `row(i, j)` are those at the first indices. */
export function shaped(values, shape) {
  const row = (...at) => {
    let size = values.length, start = 0;
    at.forEach((index, axis) => {
      size /= shape[axis];
      start += index * size;
    });
    return values.subarray(start, start + size);
  };
  return { shape, values, row };
}

/** Numbers as the server takes them. */
export function packed(values, shape) {
  const bytes = new Uint8Array(new Float32Array(values).buffer);
  let text = "";
  for (const one of bytes) text += String.fromCharCode(one);
  return { values: btoa(text), shape };
}
