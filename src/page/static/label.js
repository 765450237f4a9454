// The labelling view: a photo, a key, the next photo.

import { count, element, foreign, follow, photo, request, score, tell, version } from "./common.js";

const at = (id) => document.getElementById(id);

const WHY = {
  spread: "the model is unsure",
  disagreement: "model versions disagree",
  rarity: "few photos have such a score",
  random: "drawn at random",
};
const SHOWN_VOTES = 12;

const state = {
  queue: [],
  // Rated, skipped, or on its way: not to be shown again by the next list.
  seen: new Set(),
  current: undefined,
  given: [],
  choices: [],
  writable: false,
  thumbnails: true,
  left: 0,
  votes: 0,
};

const nameOf = (one) => JSON.stringify([one.bucket, one.key, one.etag]);

function credentials() {
  return { rater: localStorage.getItem("roc4mllm.rater") ?? "", token: sessionStorage.getItem("roc4mllm.token") ?? "" };
}

const isKnown = () => Boolean(credentials().rater && credentials().token);

/* What is shown */

function summary() {
  const parts = [];
  if (!state.writable) parts.push("Read-only: this worker takes no votes (http.page.label_token is not set)");
  if (state.votes) parts.push(state.votes === 1 ? "1 vote given" : `${count(state.votes)} votes given`);
  if (state.current) parts.push("the photos that would teach the model most come first");
  else parts.push("every scored photo has a vote");
  const text = parts.join(", ");
  const shown = text[0].toUpperCase() + text.slice(1);
  if (at("summary").textContent !== shown) at("summary").textContent = shown;
}

const keyOf = (index) => String((index + 1) % 10);

function show() {
  const one = state.current;
  const box = at("photo");
  if (box.dataset.name !== (one ? nameOf(one) : "")) {
    box.dataset.name = one ? nameOf(one) : "";
    if (!one) box.replaceChildren(element("p", { class: "no-photo" }, "Nothing to label just now. New photos appear here once they are scored."));
    else if (state.thumbnails) box.replaceChildren(photo(one, "large", `The photo to rate: ${one.key}`));
    else box.replaceChildren(element("p", { class: "no-photo" }, "Photos are not shown by this worker (http.page.thumbnails)."));
    at("name").replaceChildren(one ? foreign(`${one.bucket}/${one.key}`) : "");
    at("reason").textContent = one ? WHY[one.reason] ?? one.reason : "";
    at("reason").hidden = !one;
  }
  const votes = at("votes");
  if (votes.childElementCount !== state.choices.length) {
    votes.replaceChildren(...state.choices.map((choice, index) =>
      element("button", { type: "button", "data-choice": choice, "aria-keyshortcuts": keyOf(index), "aria-label": `${choice}, key ${keyOf(index)}`, onclick: () => vote(choice) },
        element("span", {}, Number.isInteger(choice) ? String(choice) : choice.toFixed(1)),
        Number.isInteger(choice) && keyOf(index) === String(choice) ? null : element("kbd", { "aria-hidden": "true" }, keyOf(index)))));
  }
  for (const button of votes.children) button.disabled = !one || !state.writable;
  at("skip").disabled = !one;
  at("back").disabled = !state.given.length;
  const { rater } = credentials();
  at("who").hidden = !state.writable;
  at("who").textContent = isKnown() ? `Voting as ${rater}` : "Sign in to vote";
  at("given").replaceChildren(...state.given.slice(0, SHOWN_VOTES).map((given) =>
    element("li", { class: given.failed ? "failed" : given.stored ? "stored" : "pending" },
      state.thumbnails ? photo(given.photo, "small", "") : null,
      element("div", {},
        element("p", {}, element("b", {}, `You ${given.score}`), ` · model ${score(given.photo.predicted)}`),
        element("p", { class: "name", title: given.photo.model_version }, foreign(given.photo.key)),
        element("p", { class: "state" }, given.failed ?? (given.stored ? "stored" : "sending"))))));
  if (!state.given.length) at("given").replaceChildren(element("li", { class: "empty" }, "None in this tab yet."));
  summary();
}

/* Which photo */

function advance() {
  state.current = state.queue.find((one) => !state.seen.has(nameOf(one)));
  const next = state.queue.filter((one) => !state.seen.has(nameOf(one)))[1];
  // In the browser's cache by the time it is wanted.
  if (next && state.thumbnails) new Image().src = `api/photos/${encodeURIComponent(next.id)}/large`;
  show();
  if (state.queue.filter((one) => !state.seen.has(nameOf(one))).length < 3) reload?.();
}

async function load() {
  try {
    const next = await request("api/label/next");
    tell(at("trouble"), undefined);
    Object.assign(state, { choices: next.choices, writable: next.writable, thumbnails: next.thumbnails, left: next.left, queue: next.suggestions });
    const is = state.current && nameOf(state.current);
    // Whoever looks at a photo keeps it, however the list has changed.
    if (!state.current || state.seen.has(is)) advance();
    else show();
    if (state.writable && !isKnown() && !asked) ask();
  } catch (error) {
    if (error.code !== "starting") tell(at("trouble"), error.message);
  }
}

/* Votes */

async function vote(choice) {
  const one = state.current;
  if (!one || !state.writable) return;
  if (!isKnown()) return ask();
  const { rater, token } = credentials();
  const given = { photo: one, score: choice, stored: false };
  state.given = [given, ...state.given.filter((other) => nameOf(other.photo) !== nameOf(one))];
  state.seen.add(nameOf(one));
  advance();
  try {
    await request("api/label/votes", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
      body: JSON.stringify({ bucket: one.bucket, key: one.key, etag: one.etag, rater, score: choice }),
    });
    given.stored = true;
    state.votes += 1;
    tell(at("trouble"), undefined);
  } catch (error) {
    given.failed = "not stored";
    state.seen.delete(nameOf(one));
    state.given = state.given.filter((other) => other !== given);
    state.current = one;
    if (error.status === 401) {
      sessionStorage.removeItem("roc4mllm.token");
      tell(at("trouble"), "The token is wrong, and the vote was not stored. Enter it again.");
      ask();
    } else tell(at("trouble"), `The vote was not stored: ${error.message}`);
  }
  show();
}

function skip() {
  if (!state.current) return;
  state.seen.add(nameOf(state.current));
  state.current = undefined;
  advance();
}

// The last photo again: another vote takes the place of the first.
function back() {
  const given = state.given.shift();
  if (!given) return;
  state.seen.delete(nameOf(given.photo));
  state.current = given.photo;
  show();
}

/* Who votes */

let asked = false;

function ask() {
  asked = true;
  at("rater").hidden = false;
  at("rater-name").value = credentials().rater;
  (credentials().rater ? at("rater-token") : at("rater-name")).focus();
}

at("rater").addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem("roc4mllm.rater", at("rater-name").value.trim());
  sessionStorage.setItem("roc4mllm.token", at("rater-token").value.trim());
  at("rater-token").value = "";
  at("rater").hidden = true;
  tell(at("trouble"), undefined);
  show();
  at("votes").focus();
});

at("skip").addEventListener("click", skip);
at("back").addEventListener("click", back);
at("who").addEventListener("click", ask);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select")) return;
  const index = event.key === "0" ? 9 : Number(event.key) - 1;
  if (/^[0-9]$/.test(event.key) && index < state.choices.length) vote(state.choices[index]);
  else if (event.key === "s" || event.key === "ArrowRight") skip();
  else if (event.key === "u" || event.key === "ArrowLeft") back();
  else if (event.key === "n" && state.writable) ask();
  else return;
  event.preventDefault();
});

show();
const reload = follow(load, 5000);
