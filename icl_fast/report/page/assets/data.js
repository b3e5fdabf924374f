// What Python wrote into the page: the manifest as `data`, and arrays by the numbers that stand for them in it.
const DTYPES = {
  uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
};

/** Filled by `load`. */
export const data = {};
let bytes = null;
const decoded = new Map();

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Read the manifest and unpack the arrays; everything else waits for this. */
export async function load() {
  Object.assign(data, JSON.parse(document.getElementById("manifest").textContent));
  const element = document.getElementById("arrays");
  const packed = new Blob([fromBase64(element.textContent)]);
  element.remove();
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  bytes = new Uint8Array(await new Response(stream).arrayBuffer());
}

function unpack({ dtype, shape, offset }) {
  const Type = DTYPES[dtype];
  const count = shape.reduce((a, b) => a * b, 1);
  const size = Type.BYTES_PER_ELEMENT;
  if (size === 1) return new Type(bytes.buffer, offset, count); // where it lies
  const numbers = new Type(count);
  const out = new Uint8Array(numbers.buffer);
  // stored by significance: all first bytes, then all second ones, ...
  for (let b = 0; b < size; b++) {
    const from = offset + b * count;
    for (let i = 0; i < count; i++) out[i * size + b] = bytes[from + i];
  }
  return numbers;
}

/** The array that Python's `add` gave this number: {data: typed array, row-major, shape: [...]}. */
export function array(reference) {
  if (!decoded.has(reference)) {
    const packed = data.arrays[reference];
    decoded.set(reference, { data: unpack(packed), shape: packed.shape });
  }
  return decoded.get(reference);
}

/** The numbers of an array given by its number, or as it is. */
export const values = (of) => (typeof of === "number" ? array(of).data : of);

/** [snapshot] of a model, by its index: how much training it had (`data.progress` says what is counted), and steps. */
export const seen = (model) => array(data.models[model].seen).data;
export const steps = (model) => array(data.models[model].steps).data;
