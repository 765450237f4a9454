// The overview.

import { ago, count, distribution, duration, element, follow, foreign, milliseconds, photo, rate, reconcile, request, score, shape, tell, version } from "./common.js";

const at = (id) => document.getElementById(id);

const troubles = new Map();
function trouble(source, text) {
  if (text) troubles.set(source, text);
  else troubles.delete(source);
  tell(at("trouble"), [...new Set(troubles.values())].join(" · "));
}

// One reader of the API; what it cannot get is said at the top, and what was shown stays.
function reader(path, show) {
  return async () => {
    try {
      const document = await request(path);
      trouble(path, document.stale ? `Shown as of ${ago(document.as_of)}: ${document.stale}` : undefined);
      show(document.data ?? document, document);
    } catch (error) {
      trouble(path, error.code === "starting" ? undefined : error.message);
    }
  };
}

/* At a glance */

const glance = { live: undefined, scores: undefined };

const REASONS = { lookup: "Look up", fetch: "Fetch", infer: "Decode and score", pg: "Store" };

function tiles() {
  const { live, scores } = glance;
  const dead = scores && (scores.statuses.rejected ?? 0) + (scores.statuses.dead ?? 0);
  const about = scores?.sampled ? "about " : "";
  const list = [
    ["Scored", scores && about + count(scores.statuses.scored ?? 0), "", "scored"],
    ["Dead letters", scores && about + count(dead), dead > 0 ? "warn" : "", "dead-letters"],
    ["Scores a second", live && rate(live.now.scored_per_second), "", "rate"],
    ["Records waiting", live && (live.now.lag === null ? "–" : count(live.now.lag)), "", "lag"],
    ["In flight", live && count(live.now.in_flight), "", "in-flight"],
  ];
  for (const [name, value, kind, id] of list) {
    let tile = at(`tile-${id}`);
    if (!tile) {
      tile = element("div", { id: `tile-${id}` }, element("dt", {}, name), element("dd", {}, "–"));
      at("tiles").append(tile);
    }
    tile.className = kind;
    tile.lastChild.textContent = value ?? "–";
  }
}

/* This worker */

function curve(figure, values, every, format, current) {
  const width = 600, height = 90;
  const highest = Math.max(...values, 1);
  const step = width / 149;
  const offset = width - (values.length - 1) * step;
  const points = values.map((value, index) => [offset + index * step, height - 4 - (value / highest) * (height - 12)]);
  const line = points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const area = points.length ? `${line}L${points.at(-1)[0].toFixed(1)} ${height}L${points[0][0].toFixed(1)} ${height}Z` : "";
  figure.querySelector("b").textContent = current;
  figure.querySelector("svg")?.remove();
  figure.querySelector(".scale")?.remove();
  const seconds = Math.round(values.length * every);
  figure.append(
    shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${figure.textContent}; at most ${format(Math.max(...values, 0))} in ${duration(seconds)}` },
      shape("line", { class: "axis", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }),
      shape("path", { class: "area", d: area }),
      shape("path", { class: "line", d: line })),
    element("p", { class: "scale", "aria-hidden": "true" }, element("span", {}, "5 min ago"), element("span", {}, `peak ${format(Math.max(...values, 0))}`), element("span", {}, "now")));
}

function pipeline(now) {
  const stages = [
    { key: "kafka", name: "Kafka", big: now.lag === null ? "–" : count(now.lag), small: "waiting", detail: now.paused ? "paused: the pipeline is full" : `${now.partitions} partitions` },
    ...now.stages.map((stage) => ({
      key: stage.stage,
      name: REASONS[stage.stage] ?? stage.stage,
      big: count(stage.in_flight),
      small: "inside",
      detail: `${rate(stage.per_second)}/s · ${milliseconds(stage.mean_ms)}`,
      more: stage.stage === "infer" ? `${count(now.batch_queue)} queued · batches of ${now.batch_size === null ? "–" : now.batch_size.toFixed(1)}` : undefined,
      busy: stage.in_flight > 0,
    })),
    { key: "commit", name: "Commit", big: count(now.uncommitted), small: "to commit", detail: now.held > 0 ? `${count(now.held)} held back` : "outputs and offsets" },
  ];
  at("pipeline").replaceChildren(...stages.map((stage) =>
    element("li", { class: stage.busy ? "panel busy" : "panel", "data-stage": stage.key },
      element("h3", {}, stage.name),
      element("p", { class: "depth" }, element("span", { class: "value" }, stage.big), " ", element("span", { class: "std" }, stage.small)),
      element("p", { class: "detail" }, stage.detail),
      stage.more && element("p", { class: "detail" }, stage.more))));
}

function showLive(live) {
  glance.live = live;
  const { now } = live;
  const status = at("status");
  status.textContent = live.ready ? "Ready" : live.reason === "starting" ? "Starting" : "Not ready";
  status.className = `status ${live.ready ? "good" : "bad"}`;
  at("worker").textContent = `roc4mllm ${live.version}, up ${duration(live.uptime_seconds)}`;
  trouble("ready", live.ready || live.reason === "starting" ? undefined : `Not ready: ${live.reason}`);
  trouble("broken", now.broken.length ? `Held until ${now.broken.join(", ")} answers again` : undefined);
  const { history } = now;
  curve(at("rate-curve"), history.scored_per_second, history.every_seconds, rate, rate(now.scored_per_second));
  curve(at("lag-curve"), history.lag, history.every_seconds, count, now.lag === null ? "–" : count(now.lag));
  pipeline(now);
  at("loaded").textContent = now.models.length ? `Loaded here: ${now.models.map((model) => `${version(model.version)} (${model.role})`).join(", ")}` : "";
  thumbnails = live.thumbnails;
  refresh = Math.max(2000, live.refresh_ms);
  tiles();
}

/* Scores by version */

function histogram(bins, [low, high], mean, label) {
  const width = 360, height = 110;
  const highest = Math.max(...bins, 1);
  const step = width / bins.length;
  const bars = bins.map((rows, index) => {
    const tall = rows ? Math.max(2, (rows / highest) * (height - 14)) : 0;
    const from = low + ((high - low) * index) / bins.length;
    const to = low + ((high - low) * (index + 1)) / bins.length;
    return shape("rect", { class: "bar", x: index * step + 0.5, y: height - tall, width: step - 1, height: tall },
      shape("title", {}, `${score(from)} to ${score(to)}: ${count(rows)}`));
  });
  const place = ((mean - low) / (high - low)) * width;
  return shape("svg", { class: "spread", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    shape("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }), ...bars,
    shape("line", { class: "mean", x1: place, x2: place, y1: 0, y2: height }));
}

function showScores(scores) {
  glance.scores = scores;
  tiles();
  const shown = scores.histograms;
  const more = scores.versions - shown.length;
  at("spread-legend").replaceChildren(element("span", { class: "key" }), "mean", more > 0 ? ` · ${more} more versions with fewer scores` : "");
  const panels = shown.map((one) => {
    const mean = score(one.mean);
    const about = scores.sampled ? "about " : "";
    return element("figure", { class: "panel", "data-version": one.model_version },
      element("figcaption", {}, element("b", { title: one.model_version }, version(one.model_version)),
        element("span", { class: "std" }, `${about}${count(one.scored)} scored, mean ${mean}`)),
      histogram(one.bins, scores.range, one.mean, `Scores of ${one.model_version}: ${count(one.scored)}, mean ${mean}`),
      element("p", { class: "scale", "aria-hidden": "true" }, element("span", {}, String(scores.range[0])), element("span", {}, String(scores.range[1]))));
  });
  at("histograms").replaceChildren(...(panels.length ? panels : [element("p", { class: "empty" }, "Nothing is scored yet.")]));
  const codes = Object.entries(scores.errors).sort((one, other) => other[1] - one[1]);
  at("codes").replaceChildren(...codes.map(([code, rows]) => element("li", { "data-code": code }, element("code", {}, code), ` ${count(rows)}`)));
}

/* Images */

let thumbnails = true;
let list = "latest";
let images;

function card(item, isNew) {
  const name = `${item.bucket}/${item.key}`;
  const open = element("button", { type: "button", class: "open", onclick: () => view(item) },
    thumbnails ? photo(item, "small", "") : element("div", { class: "photo" }, element("p", { class: "no-photo" }, "previews are off")),
    element("span", { class: "facts" },
      element("span", { class: "score" }, element("span", { class: "value" }, score(item.score)), element("span", { class: "std" }, `± ${score(item.std)}`)),
      foreign(name, { class: "name" })));
  return element("li", { class: isNew ? "card fresh" : "card" }, open);
}

function showImages(data) {
  if (data) images = data;
  if (!images) return;
  const shown = images[list];
  reconcile(at("gallery"), shown, (item) => item.id, card);
  if (!shown.length) at("gallery").replaceChildren(element("li", { class: "empty" }, "Nothing is scored yet."));
}

for (const button of document.querySelectorAll("[data-list]")) {
  button.addEventListener("click", () => {
    list = button.dataset.list;
    for (const other of document.querySelectorAll("[data-list]")) other.setAttribute("aria-pressed", String(other === button));
    at("gallery").replaceChildren();
    showImages();
  });
}

function view(item) {
  const viewer = at("viewer");
  viewer.querySelector(".viewer-photo").replaceChildren(thumbnails ? photo(item, "large", `${item.bucket}/${item.key}`) : "");
  viewer.querySelector(".viewer-facts").replaceChildren(
    element("p", { class: "score" }, element("span", { class: "value" }, score(item.score)), element("span", { class: "std" }, `± ${score(item.std)}`)),
    distribution(item.distribution, item.score, images.range),
    element("p", { class: "scale", "aria-hidden": "true" }, element("span", {}, String(images.range[0])), element("span", {}, String(images.range[1]))),
    element("p", { class: "name", id: "viewer-name" }, foreign(`${item.bucket}/${item.key}`)),
    element("p", { class: "name" }, `Scored ${ago(item.at)} by ${version(item.model_version)}`),
    element("p", { class: "name" }, item.id));
  viewer.showModal();
}
at("viewer").addEventListener("click", (event) => {
  if (event.target === at("viewer")) at("viewer").close();
});

/* Dead letters */

function failure(item) {
  const name = item.key === null ? "A record that names no object" : `${item.bucket}/${item.key}`;
  let message = item.error?.message ?? "no reason was stored";
  if (message.startsWith(`${name}: `)) message = message.slice(name.length + 2);
  const split = message.lastIndexOf("; ");
  const [reason, remedy] = split < 0 ? [message] : [message.slice(0, split), message.slice(split + 2)];
  return element("li", {},
    element("div", {}, element("p", { class: "name" }, foreign(name)), element("p", { class: "reason" }, foreign(reason)), remedy && element("p", { class: "remedy" }, foreign(remedy))),
    element("p", { class: "when" }, element("time", { datetime: item.at, title: item.at }, ago(item.at)), " ", element("code", {}, item.error?.code ?? item.status)));
}

function showFailures(failures) {
  const nothing = [{ id: "none" }];
  reconcile(at("failures"), failures.length ? failures : nothing, (item) => item.id, (item) =>
    item.id === "none" ? element("li", { class: "empty" }, "None.") : failure(item));
}

/* Models */

const metric = (value) => (typeof value === "number" ? value.toFixed(3) : undefined);
const SETS = { newest: "newest labels", gold: "gold set", old: "old domain" };

// SRCC on each set that retraining judges by, with what it gained on the champion: of a run, or of a version that
// a run has published.
function judged(metrics) {
  const sets = Object.entries(SETS).map(([set, name]) => {
    const compared = metrics?.[set]?.comparison?.metrics?.srcc;
    const value = metric(compared?.challenger?.value ?? metrics?.[`${set}_srcc`]);
    const gain = compared?.difference?.value ?? metrics?.[`${set}_srcc_gain`];
    return value && `${name} ${value}${typeof gain === "number" ? ` (${gain < 0 ? "−" : "+"}${metric(Math.abs(gain))})` : ""}`;
  }).filter(Boolean);
  return sets.length ? `SRCC: ${sets.join(", ")}` : "";
}

// The few numbers that people compare models by, wherever in the metrics they stand.
function figures(metrics) {
  const retrained = judged(metrics);
  if (retrained) return retrained;
  const found = new Map();
  const search = (value, depth) => {
    if (!value || typeof value !== "object" || depth > 3) return;
    for (const [name, inner] of Object.entries(value)) {
      const key = name.toLowerCase();
      if (["srcc", "plcc", "mae", "emd"].includes(key) && !found.has(key)) {
        const number = metric(typeof inner === "object" && inner ? inner.value ?? inner.mean ?? inner.estimate : inner);
        if (number) found.set(key, number);
      }
      search(inner, depth + 1);
    }
  };
  search(metrics, 0);
  return [...found].map(([name, value]) => `${name.toUpperCase()} ${value}`).join(", ");
}

function showModels({ versions, reigns, runs }) {
  const since = new Map(reigns.map((reign) => [reign.version, reign]));
  const share = (value) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)}%`;
  const row = (one) => {
    const duty = [one.canary_share > 0 && `canary ${share(one.canary_share)}`, one.shadow_share > 0 && `shadow ${share(one.shadow_share)}`].filter(Boolean).join(", ");
    const reign = since.get(one.version);
    return element("tr", {},
      element("th", { scope: "row", title: one.digest }, version(one.version)),
      element("td", {}, element("span", { class: `tag ${one.status}` }, one.status), duty && ` ${duty}`),
      element("td", { class: "measured" }, figures(one.metrics) || "–"),
      element("td", {}, one.parent ? version(one.parent) : "–"),
      element("td", {}, element("time", { datetime: one.created_at, title: one.created_at }, ago(one.created_at))),
      element("td", {}, reign ? `${reign.kind === "rollback" ? "rolled back to" : "promoted"} ${ago(reign.since)}` : "–"));
  };
  at("versions").replaceChildren(versions.length
    ? element("table", {},
      element("thead", {}, element("tr", {}, ...["Version", "Status", "Measured", "Trained from", "Published", "Champion"].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...versions.map(row)))
    : element("p", { class: "empty" }, "None is registered. The worker scores with the checkpoint it was given; ", element("code", { class: "plain" }, "roc4mllm models publish"), " registers versions."));

  const OUTCOMES = { accepted: "good", rejected: "warn", failed: "warn", abandoned: "warn" };
  const run = (one) => {
    const underWay = one.outcome === null;
    const progress = underWay && one.total > 0 ? ` ${Math.round((one.done / one.total) * 100)}%` : "";
    const took = one.ended_at && (Date.parse(one.ended_at) - Date.parse(one.started_at)) / 1000;
    const facts = [`${one.kind} ${one.id}`, `started ${ago(one.started_at)}`, took && `took ${duration(took)}`, one.attempts > 1 && `${one.attempts} attempts`];
    const named = (name) => element("span", { class: "version" }, version(name));
    const champion = one.champion && [one.challenger ? " against the champion " : "Champion: ", named(one.champion)];
    const models = [one.challenger && named(one.challenger), champion].flat().filter(Boolean);
    const labels = one.counts && `${count(one.counts.new_labels)} new labels and ${count(one.counts.older_labels)} older ones, ${count(one.counts.training)} photos to train on`;
    // A rejected model may be kept where it was trained, and its report with it.
    const published = one.report?.startsWith("s3://");
    return element("li", { class: "panel", "data-outcome": one.outcome ?? "running" },
      element("p", { class: "run-head" },
        element("span", { class: `tag ${underWay ? "busy" : OUTCOMES[one.outcome] ?? ""}` }, underWay ? `${one.stage ?? "under way"}${progress}` : one.outcome.replaceAll("_", " ")),
        element("span", { class: "std" }, facts.filter(Boolean).join(", "))),
      underWay && one.total > 0 && element("progress", { max: one.total, value: one.done, "aria-label": `${one.kind} ${one.id}: ${one.stage}` }),
      models.length > 0 && element("p", {}, models),
      [labels, judged(one.metrics)].map((line) => line && element("p", { class: "std" }, line)),
      one.reason && element("p", { class: "remedy" }, foreign(one.reason)),
      published && thumbnails && element("p", {}, element("a", { href: `api/runs/${encodeURIComponent(one.id)}/report`, target: "_blank", rel: "noopener" }, `Report of ${one.kind} ${one.id}`)),
      one.report && !published && element("p", { class: "std" }, "The report was not published: ", foreign(one.report)),
      (one.verdict || one.metrics) && element("details", {}, element("summary", {}, "All numbers"),
        element("pre", { tabindex: "0" }, JSON.stringify({ verdict: one.verdict, metrics: one.metrics, counts: one.counts }, null, 2))));
  };
  const open = new Set([...document.querySelectorAll("#runs details[open]")].map((details) => details.closest("li").dataset.key));
  const items = runs.length ? runs.map(run) : [element("li", { class: "empty" }, "No run yet. ", element("code", { class: "plain" }, "roc4mllm retrain"), " trains on new labels and promotes what is better.")];
  items.forEach((item, index) => {
    item.dataset.key = String(runs[index]?.id ?? "none");
    const details = item.querySelector("details");
    if (details && open.has(item.dataset.key)) details.open = true;
  });
  at("runs").replaceChildren(...items);
}

/* Going */

let refresh = 5000;
tiles();
follow(reader("api/live", showLive), 2000);
follow(reader("api/scores", showScores), () => refresh);
follow(reader("api/images", showImages), () => refresh);
follow(reader("api/failures", showFailures), () => refresh);
follow(reader("api/models", showModels), () => 4 * refresh);
at("footer").textContent = "The curves and stages are this worker's own. Totals, images and dead letters are Postgres', of every worker.";
