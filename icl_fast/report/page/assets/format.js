"use strict";
// Numbers as text, and axes: where values lie, and which of them get a tick.
(() => {
  const format = (ICL.format = {});

  const significant = (value, digits) => Number(value.toPrecision(digits));

  /** 12.3M tokens, 1.5k; whole below a thousand. */
  format.count = (value) => {
    const size = Math.abs(value);
    for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= unit * 0.9995) return `${significant(value / unit, 3)}${letter}`;
    }
    return String(significant(value, 3));
  };

  /** 1,200 */
  format.whole = (value) => Math.round(value).toLocaleString("en");

  /** A measured value: three digits after the point, more only where it is tiny, fewer where it is large. */
  format.value = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size < 1e-9) return "0"; // what rounding leaves of nothing
    const text = size >= 1000 ? format.count(value) : size >= 100 ? value.toFixed(1)
      : size >= 0.001 ? value.toFixed(3) : value.toExponential(1);
    return text.replaceAll("-", "−");
  };

  format.tick = (value) => {
    if (Math.abs(value) >= 1000) return format.count(value).replace("-", "−");
    return String(significant(value, 6)).replace("-", "−");
  };

  format.percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;

  format.head = ([layer, head]) => `${layer}.${head}`;

  // ---- axes: `to` maps a value to a position from 0 (start) to 1 (end), `from` maps back.

  function steps(low, high, most) {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    const from = (step) => Math.ceil(low / step - 1e-9);
    const count = (step) => Math.floor(high / step + 1e-9) - from(step) + 1;
    const step = [1, 2, 5, 10, 20].map((m) => m * power).find((s) => count(s) <= most + 1);
    return Array.from({ length: count(step) }, (_, i) => (from(step) + i) * step);
  }

  function decades(low, high, most) {
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) {
      const fine = [];
      for (let d = first - 1; d <= last; d++) for (const m of [1, 2, 5]) fine.push(m * 10 ** d);
      return fine.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    }
    const every = Math.ceil((last - first + 1) / most);
    const ticks = [];
    for (let d = first; d <= last; d += every) ticks.push(10 ** d);
    return ticks;
  }

  /** An axis over [low, high]; a logarithmic one begins at `low` above 0. `ticks`: at most how many. */
  ICL.axis = (low, high, log, ticks = 4) => {
    const g = log ? Math.log10 : (v) => v;
    const a = g(low);
    const span = g(high) - a || 1;
    return {
      low, high, log,
      to: (value) => (g(value) - a) / span,
      from: (part) => (log ? 10 ** (a + part * span) : a + part * span),
      ticks: log ? decades(low, high, ticks) : steps(low, high, ticks),
    };
  };

  /** Index of the value nearest to `value` in a rising array. */
  ICL.nearest = (rising, value) => {
    let low = 0;
    let high = rising.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (rising[middle] <= value) low = middle;
      else high = middle;
    }
    return value - rising[low] <= rising[high] - value ? low : high;
  };
})();
