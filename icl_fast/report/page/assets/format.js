// Numbers as text.
const significant = (value, digits) => Number(value.toPrecision(digits));
const signed = (text) => text.replaceAll("-", "−");

/** 12.3M tokens, 1.5k; whole below a thousand. */
export function count(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.9995) return `${significant(value / unit, 3)}${letter}`;
  }
  return String(significant(value, 3));
}

/** 1,200 */
export const whole = (value) => Math.round(value).toLocaleString("en");

/** A measured value: three digits after the point, more only where it is tiny, fewer where it is large. */
export function value(of) {
  if (of === null || of === undefined || Number.isNaN(of)) return "–";
  const size = Math.abs(of);
  if (size < 1e-9) return "0"; // what rounding leaves of nothing
  const text = size >= 1000 ? count(of) : size >= 100 ? of.toFixed(1)
    : size >= 0.001 ? of.toFixed(3) : of.toExponential(1);
  return signed(text);
}

export const tick = (of) => signed(Math.abs(of) >= 1000 ? count(of) : String(significant(of, 6)));

export const head = ([layer, number]) => `${layer}.${number}`;
