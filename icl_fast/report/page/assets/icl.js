"use strict";
// The page's one global: its data, what is chosen on it, and small helpers. Loaded first; main.js, loaded last, starts.
const ICL = { data: null, texts: {}, panels: { all: [] } };

(() => {
  const DTYPES = {
    uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
    uint32: Uint32Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
  };
  let bytes = null;
  const decoded = new Map();

  function fromBase64(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const binary = atob(text);
    const out = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
    return out;
  }

  /** Read the manifest and unpack the arrays; everything else waits for this. */
  ICL.load = async () => {
    ICL.data = JSON.parse(document.getElementById("manifest").textContent);
    const element = document.getElementById("arrays");
    const packed = new Blob([fromBase64(element.textContent)]);
    element.remove();
    const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
    bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  };

  /** The array that Python's `add` gave this number: {data: typed array, row-major, shape: [...]}. */
  ICL.array = (reference) => {
    if (decoded.has(reference)) return decoded.get(reference);
    const { dtype, shape, offset } = ICL.data.arrays[reference];
    const count = shape.reduce((a, b) => a * b, 1);
    const data = new DTYPES[dtype](count);
    const size = data.BYTES_PER_ELEMENT;
    const out = new Uint8Array(data.buffer);
    // stored by significance: all first bytes, then all second ones, ...
    for (let b = 0; b < size; b++) {
      const from = offset + b * count;
      for (let i = 0; i < count; i++) out[i * size + b] = bytes[from + i];
    }
    const array = { data, shape };
    decoded.set(reference, array);
    return array;
  };

  /** An element. `options`: class, text (never HTML), attributes by name, `on`: {event: handler}; then children. */
  ICL.el = (tag, options = {}, ...children) => {
    const svg = tag === "svg" || tag === "path" || tag === "line" || tag === "circle" || tag === "rect";
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.setAttribute("class", value);
      else if (name === "text") node.textContent = value;
      else if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  // Tell others that something changed: ICL.on("axis", draw); ICL.emit("axis").
  const listeners = new Map();
  ICL.on = (event, call) => listeners.set(event, [...(listeners.get(event) || []), call]);
  ICL.emit = (event, ...values) => (listeners.get(event) || []).forEach((call) => call(...values));

  // What is chosen on the page; the address keeps it: #axis=log&colour=depth&theme=dark.
  ICL.choices = {
    axis: [["linear", "linear"], ["log", "log"]],
    colour: [["paper", "as in the paper"], ["depth", "depth"], ["type", "type"]],
    theme: [["auto", "auto"], ["light", "light"], ["dark", "dark"]],
  };
  ICL.state = { axis: "linear", colour: "paper", theme: "auto" };
  ICL.choose = (name, value) => {
    if (!ICL.choices[name].some(([known]) => known === value)) return;
    ICL.state[name] = value;
    document.documentElement.dataset[name] = value;
    ICL.emit(name, value);
  };
  ICL.remember = () => history.replaceState(null, "", `#${new URLSearchParams(ICL.state)}`);
  ICL.recall = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(ICL.choices)) ICL.choose(name, kept.get(name) || ICL.state[name]);
  };

  // Work in small pieces, each a task of its own, so that none of it holds up a hover or a scroll.
  const queue = [];
  let running = false;
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    const next = queue.shift();
    if (next) {
      next.call();
      if (queue.length) requestAnimationFrame(() => channel.port2.postMessage(null));
      else running = false;
    } else running = false;
  };
  /** Do `call` in a task of its own, soon; of two with the same key the later replaces the earlier. */
  ICL.later = (key, call, first = false) => {
    const at = queue.findIndex((job) => job.key === key);
    if (at >= 0) queue.splice(at, 1);
    if (first) queue.unshift({ key, call });
    else queue.push({ key, call });
    if (!running) {
      running = true;
      requestAnimationFrame(() => channel.port2.postMessage(null));
    }
  };
  /** Resolves when nothing is waiting to be done; what is scrolled to by then is drawn. */
  ICL.settled = async () => {
    for (let quiet = 0; quiet < 3; quiet = running ? 0 : quiet + 1) await new Promise((done) => requestAnimationFrame(done));
  };
})();
