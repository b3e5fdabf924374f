// What is chosen on the page, which the address keeps (#axis=log&colour=depth&theme=dark), and who is told of changes.
const listeners = new Map();

/** Call `call` whenever `emit` says that something happened: on("axis", draw); emit("axis"). */
export function on(event, call) {
  listeners.set(event, [...(listeners.get(event) || []), call]);
}

export function emit(event, ...what) {
  for (const call of listeners.get(event) || []) call(...what);
}

/** [value, label] of everything that can be chosen. */
export const choices = {
  axis: [["linear", "linear"], ["log", "log"]],
  colour: [["paper", "as in the paper"], ["depth", "depth"], ["type", "type"]],
  theme: [["auto", "auto"], ["light", "light"], ["dark", "dark"]],
};
export const state = { axis: "linear", colour: "paper", theme: "auto" };

export function choose(name, value) {
  if (!choices[name].some(([known]) => known === value)) return;
  state[name] = value;
  document.documentElement.dataset[name] = value;
  emit(name, value);
}

export const remember = () => history.replaceState(null, "", `#${new URLSearchParams(state)}`);

export function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(choices)) choose(name, kept.get(name) || state[name]);
}
