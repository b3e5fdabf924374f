// Numbers as text.
const significant = (number, digits) => Number(number.toPrecision(digits));
const signed = (text) => text.replaceAll("-", "−");

/** 12.3M tokens, 1.5k; whole below a thousand. */
export function count(number) {
  const size = Math.abs(number);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.9995) return `${significant(number / unit, 3)}${letter}`;
  }
  return String(significant(number, 3));
}

/** 1,200 */
export const whole = (number) => Math.round(number).toLocaleString("en");

/** A measured value: three digits after the point, more only where it is tiny, fewer where it is large. */
export function value(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  const size = Math.abs(number);
  if (size < 1e-9) return "0"; // what rounding leaves of nothing
  const text = size >= 1000 ? count(number) : size >= 100 ? number.toFixed(1)
    : size >= 0.001 ? number.toFixed(3) : number.toExponential(1);
  return signed(text);
}

export const tick = (number) => signed(Math.abs(number) >= 1000 ? count(number) : String(significant(number, 6)));

export const head = ([layer, number]) => `${layer}.${number}`;
