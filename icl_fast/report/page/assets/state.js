// What is chosen on the page, which the address keeps (#axis=log&colour=depth&theme=dark&step=400), and who is told of
// changes.
const listeners = new Map();

const there = ({ owner }) => !owner || owner.isConnected;

/**
 * Call `call` whenever `emit` says that something happened: on("axis", draw); emit("axis"). `owner`: an element, after
 * whose end on the page nothing is called any more.
 */
export function on(event, call, owner = null) {
  listeners.set(event, [...(listeners.get(event) || []), { call, owner }]);
}

export function emit(event, ...what) {
  const all = (listeners.get(event) || []).filter(there);
  listeners.set(event, all);
  for (const { call } of all) call(...what);
}

/** [value, label] of everything that can be chosen. */
export const choices = {
  axis: [["linear", "linear"], ["log", "log"]],
  colour: [["paper", "as in the paper"], ["depth", "depth"], ["type", "type"]],
  theme: [["auto", "auto"], ["light", "light"], ["dark", "dark"]],
};
/** `step`: of the snapshot that the sliders show; null: where each begins. */
export const state = { axis: "linear", colour: "paper", theme: "auto", step: null };

export function choose(name, value) {
  if (!choices[name].some(([known]) => known === value)) return;
  state[name] = value;
  document.documentElement.dataset[name] = value;
  emit(name, value);
}

export function chooseStep(step) {
  state.step = step;
  emit("step");
}

export function remember() {
  const chosen = Object.entries(state).filter(([, value]) => value !== null);
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
}

export function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(choices)) choose(name, kept.get(name) || state[name]);
  const step = kept.get("step");
  chooseStep(step !== null && /^\d+$/.test(step) ? Number(step) : null);
}
