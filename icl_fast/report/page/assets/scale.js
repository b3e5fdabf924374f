// Axes: where values lie, and which of them get a tick.
const STEPS = [0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10, 20];

/**
 * Ticks on a linear axis: multiples of 1, 2, 2.5 or 5 times a power of ten, with at most `most` such steps in the
 * range, and two ticks at least. `whole`: whole numbers only. As matplotlib's MaxNLocator, which static figures have.
 */
export function linearTicks(low, high, most, whole = false) {
  const least = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(least));
  const steps = STEPS.map((step) => step * power).filter((step) => !whole || Number.isInteger(step));
  const multiples = (step) => {
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length: count }, (_, i) => (first + i) * step);
  };
  let at = steps.findIndex((step) => step >= least * (1 - 1e-9));
  while (at > 0 && multiples(steps[at]).length < 2) at--;
  return multiples(steps[at] || 1); // none are whole where the range is small
}

/** Ticks on a logarithmic axis: 1, 2, 5, 10, ... over less than two decades, else powers of ten, at most `most`. */
export function logTicks(low, high, most) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const powers = Array.from({ length: last - first + 2 }, (_, i) => 10 ** (first - 1 + i));
  if (high < 100 * low) {
    const round = powers.flatMap((power) => [power, 2 * power, 5 * power]);
    const ticks = round.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
    return ticks.length > 1 ? ticks : linearTicks(low, high, most);
  }
  const every = Math.ceil((powers.length - 1) / most);
  return powers.slice(1).filter((_, i) => i % every === 0);
}

/**
 * An axis over [low, high], where a logarithmic one has only what is above 0: `to` maps a value to a part of it from 0
 * (start) to 1 (end), NaN if it has no place there; `from` maps back. `names`: what 0, 1, ... are called, each of which
 * gets a tick, or, of more than `most`, every second, every third, ...
 */
export function axis(low, high, { log = false, most = 5, whole = false, names = null } = {}) {
  const g = (value) => (!log ? value : value > 0 ? Math.log10(value) : NaN);
  const start = g(low);
  const span = g(high) - start || 1;
  const every = names && Math.ceil(names.length / most);
  return {
    low, high, log, names,
    to: (value) => (g(value) - start) / span,
    from: (part) => (log ? 10 ** (start + part * span) : start + part * span),
    ticks: names ? [...names.keys()].filter((i) => i % every === 0) : log ? logTicks(low, high, most) : linearTicks(low, high, most, whole),
  };
}

/** The axis' ticks but those nearer than `least` (a part of the axis): 0 and powers of ten stay before others. */
export function apart(of, least) {
  const rank = (tick) => (tick === 0 || Math.log10(Math.abs(tick)) % 1 === 0 ? 0 : 1);
  const kept = [];
  for (const tick of [...of.ticks].sort((a, b) => rank(a) - rank(b))) {
    if (kept.every((other) => Math.abs(of.to(other) - of.to(tick)) >= least)) kept.push(tick);
  }
  return kept.sort((a, b) => a - b);
}

/** First index of a rising array whose value is not below `value`. */
export function lower(rising, value) {
  let low = 0;
  let high = rising.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Index of the value of a rising array that is nearest to `value`, as `distance` measures it. */
export function nearest(rising, value, distance = (a, b) => Math.abs(a - b)) {
  const at = lower(rising, value);
  if (at <= 0 || at >= rising.length) return Math.max(0, Math.min(rising.length - 1, at));
  return distance(rising[at - 1], value) <= distance(rising[at], value) ? at - 1 : at;
}

/** Index of the value that lies nearest on the axis to a part of it, 0 to 1. */
export function nearestOn(of, rising, part) {
  // what has no place on the axis, where it is NaN, is never the nearest
  return nearest(rising, of.from(part), (value) => Math.abs(of.to(value) - part));
}
