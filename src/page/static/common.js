// What both views share: elements without markup, requests, numbers.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  // Strings become text nodes: whatever a key holds, it is shown and never read as markup.
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

export const element = (name, properties = {}, ...children) =>
  fill(document.createElement(name), properties, children);

export const shape = (name, properties = {}, ...children) =>
  fill(document.createElementNS(SVG, name), properties, children);

// Text of strangers, kept from changing the direction of what stands around it.
export const foreign = (text, properties = {}) => element("bdi", properties, text);

export class Unanswered extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `the worker answered with ${status}`);
    this.status = status;
    this.code = problem?.code;
  }
}

export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch {
    throw new Unanswered(0, { detail: "the worker does not answer; it may be restarting" });
  }
  const body = await response.json().catch(() => undefined);
  if (!response.ok) throw new Unanswered(response.status, body);
  return body;
}

// Asks again and again while the page is looked at, and at once when it is looked at anew.
export function follow(task, every) {
  let timer;
  let running = false;
  const turn = async () => {
    clearTimeout(timer);
    if (running || document.hidden) return;
    running = true;
    try {
      await task();
    } finally {
      running = false;
      timer = setTimeout(turn, typeof every === "function" ? every() : every);
    }
  };
  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value >= 1e7 ? compact.format(value) : whole.format(value));

export const rate = (value) => (value >= 100 ? whole.format(value) : value >= 10 || value === 0 ? value.toFixed(value === 0 ? 0 : 1) : value.toFixed(2));

export const score = (value) => value.toFixed(2);

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${value.toFixed(0)} ms`;
  return `${(value / 1000).toFixed(1)} s`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

export function ago(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

// "sha256:0123456789ab+assess+bf16" without what all versions have in common.
export const version = (name) => name.replace(/^sha256:/, "");

// Replaces the children of `parent`, but leaves those in place whose key is still wanted.
export function reconcile(parent, items, key, make) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const name = key(item);
    const kept = old.get(name);
    if (kept) return kept;
    const made = make(item, old.size > 0);
    made.dataset.key = name;
    return made;
  });
  const same = wanted.length === parent.children.length && wanted.every((child, index) => child === parent.children[index]);
  if (!same) parent.replaceChildren(...wanted);
}

export function photo(item, size, alternative) {
  const box = element("div", { class: "photo" });
  const image = element("img", {
    src: `api/photos/${encodeURIComponent(item.id)}/${size}`,
    alt: alternative,
    loading: size === "small" ? "lazy" : false,
    decoding: "async",
    onerror: () => image.replaceWith(element("p", { class: "no-photo" }, "no preview")),
  });
  box.append(image);
  return box;
}

// The probability of every bin of a score, with its mean.
export function distribution(shares, mean, [low, high]) {
  const highest = Math.max(...shares, 1e-9);
  const width = 100 / shares.length;
  const bars = shares.map((share, index) =>
    shape("rect", { class: "bar", x: index * width + width * 0.1, y: 40 - (share / highest) * 38, width: width * 0.8, height: (share / highest) * 38 }));
  // Bins stand for equally spaced scores, the ends included.
  const place = shares.length > 1 ? ((mean - low) / (high - low)) * (100 - width) + width / 2 : 50;
  return shape("svg", { class: "distribution", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...bars, shape("line", { class: "mean", x1: place, x2: place, y1: 0, y2: 40 }));
}

export function tell(box, text) {
  box.hidden = !text;
  if (box.textContent !== (text ?? "")) box.textContent = text ?? "";
}
