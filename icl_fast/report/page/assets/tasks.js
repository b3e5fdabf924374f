// Work in small pieces, each a task of its own, so that none of it holds up a hover or a scroll.
const queue = [];
let running = false;
const channel = new MessageChannel();

const next = () => requestAnimationFrame(() => channel.port2.postMessage(null));

channel.port1.onmessage = () => {
  const job = queue.shift();
  if (job) job.call();
  running = queue.length > 0;
  if (running) next();
};

/** Do `call` in a task of its own, soon; of two with the same key the later replaces the earlier. */
export function later(key, call) {
  const at = queue.findIndex((job) => job.key === key);
  if (at >= 0) queue.splice(at, 1);
  queue.push({ key, call });
  if (!running) next();
  running = true;
}

/** Resolves when nothing is waiting to be done; what is scrolled to by then is drawn. */
export async function settled() {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (let quiet = 0; quiet < 3; quiet = running ? 0 : quiet + 1) await frame();
}
