// The page: shows what the device answers, sends what was tapped, keeps nothing.

import { poster } from "./posters.js";

const SVG = "http://www.w3.org/2000/svg";
const MEANING = {
  bias: "Liked by many",
  taste: "Taste, fine-tuned on this device",
  "affinity.genre": "Genres of films you liked",
  "affinity.year": "Years of films you liked",
  "affinity.genre x year": "Both at once",
};
const find = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
let view = null;
let busy = false;
let leaving = 0;
let seen = 0;

function make(kind, name = "", content = "") {
  const part = document.createElement(kind);
  if (name) part.className = name;
  part.textContent = content;
  return part;
}

async function ask(path, body) {
  const answer = await fetch(`/api/${path}`, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json", "X-Kiosk": "1" } : {},
    body: body && JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : "the kiosk could not do that");
  return found;
}

/** One action at a time; a problem is told and the wall is loaded anew. */
async function act(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    find("problem").hidden = true;
    await work();
  } catch (error) {
    find("problem").textContent = error.message;
    find("problem").hidden = false;
    await ask("view").then((found) => show(found)).catch(() => {});
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function show(found, { compare = true } = {}) {
  const before = new Set(compare && view ? view.films.map((film) => film.id) : found.films.map((film) => film.id));
  view = found;
  const fresh = found.films.filter((film) => !before.has(film.id)).length;
  showWall(before);
  showDevice();
  watch(found.idle && found.idle.left);
  return fresh;
}

/** When nobody has been here for long enough, the device forgets; the page then shows a stranger's wall, too. */
function watch(left) {
  clearTimeout(leaving);
  if (left !== null) leaving = setTimeout(refresh, 1000 * left + 500);
}

async function refresh() {
  watch(5);
  await act(async () => {
    const found = await ask("view");
    if (found.slate === view?.slate) return watch(Math.max(found.idle.left, 1));
    find("dialog").close();
    show(found, { compare: false });
    scrollTo(0, 0);
    say("Nobody was here for a while: everything is forgotten. Tap a film that you like.");
  });
}

/** Whoever reads, scrolls or points is here, too; told now and then. */
function here() {
  const now = Date.now();
  if (!view?.idle || now - seen < Math.min(20000, 250 * view.idle.seconds)) return;
  seen = now;
  ask("here", {}).then((found) => watch(found.left)).catch(() => {});
}

function showWall(before) {
  const wall = find("wall");
  const places = new Map([...wall.children].map((card) => [card.dataset.id, card.getBoundingClientRect()]));
  wall.replaceChildren(...view.films.map((film) => card(film, !before.has(film.id))));
  if (still.matches) return;
  for (const one of wall.children) glide(one, places.get(one.dataset.id));
}

/** Lets a film move from where it was, or come up where it is new. */
function glide(one, from) {
  const to = one.getBoundingClientRect();
  const frames = from
    ? [{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }]
    : [{ opacity: 0, transform: "scale(0.85)" }, { opacity: 1, transform: "none" }];
  one.animate(frames, { duration: 420, easing: "cubic-bezier(.2,.8,.2,1)" });
}

function card(film, fresh) {
  const item = make("li", fresh ? "film new" : "film");
  item.dataset.id = film.id;
  const like = make("button", "poster");
  like.type = "button";
  like.setAttribute("aria-label", `I like ${film.title}, ${film.year}, ${film.genres.join(", ")}${fresh ? " (new)" : ""}`);
  like.append(poster(film), make("span", "heart", "♥"));
  like.addEventListener("click", () => act(() => tapped(film, like)));
  const under = make("div", "under");
  const words = make("div");
  words.append(make("div", "genres", film.genres.join(" · ")));
  if (film.because) {
    const because = make("div", "because", "Because you liked ");
    because.append(make("b", "", film.because));
    words.append(because);
  }
  const why = make("button", "why", "Why?");
  why.type = "button";
  why.setAttribute("aria-label", `Why ${film.title}?`);
  why.addEventListener("click", () => act(() => explain(film)));
  under.append(words, why);
  if (fresh) item.append(make("span", "badge", "new"));
  item.append(like, under);
  return item;
}

async function tapped(film, button) {
  button.classList.add("tapped");
  const place = view.films.indexOf(film);
  const keyboard = button.matches(":focus-visible");
  const fresh = show(await ask("like", { slate: view.slate, item: film.id }));
  if (keyboard) find("wall").querySelectorAll(".poster")[place]?.focus();
  say(`You liked ${film.title}. ${fresh} of ${view.films.length} films are new.`);
}

function say(text) {
  find("said").textContent = text;
  find("hint").textContent = text;
}

function showDevice() {
  const { liked, status } = view;
  find("chip").textContent = `${liked.length} liked · ε ${number(status.budget?.spent ?? 0)} of ${number(status.budget?.epsilon ?? 0)}`;
  find("count").textContent = liked.length;
  find("nothing").hidden = liked.length > 0;
  find("liked").replaceChildren(...liked.map(likedFilm));
  find("held").textContent = `Kept in one file here: ${many(status.interactions, "tap")}, ${many(status.impressions, "film")} that you were shown.`;
  find("consent").checked = status.consent;
  find("adapt").disabled = !status.consent || liked.length === 0;
  find("rehearse").disabled = !status.consent;
  find("adapted").textContent = status.adapted
    ? "The wall comes from a policy that was fine-tuned here. It never leaves."
    : "The wall comes from the shared policy and what you liked.";
  find("idle").hidden = !view.idle;
  if (view.idle) find("idle").textContent = `Left alone for ${span(view.idle.seconds)}, this kiosk forgets by itself: taps, training, consent.`;
  showBudget(status);
}

const span = (seconds) => (seconds < 60 ? many(Math.round(seconds), "second") : many(Math.round(seconds / 60), "minute"));

function likedFilm(film) {
  const item = make("li");
  const dot = make("span", "dot");
  dot.append(poster(film));
  const forget = make("button", "", "×");
  forget.type = "button";
  forget.title = "Forget this film";
  forget.setAttribute("aria-label", `Forget ${film.title}`);
  forget.addEventListener("click", () => act(async () => {
    show(await ask("forget", { item: film.id }));
    say(`${film.title} is forgotten, in the file's bytes, too.`);
    find("device").focus({ preventScroll: true });
  }));
  item.append(dot, make("span", "what", film.title), forget);
  return item;
}

function showBudget({ budget, releases, forgotten, problem, unit }) {
  const bar = find("bar");
  if (!budget) {
    find("spent").textContent = problem ? "not readable" : "nothing to pay";
    bar.hidden = true;
    find("terms").replaceChildren(make("dt", "", problem ?? `unit ${unit}: noise is added elsewhere`));
    return;
  }
  const limit = budget.epsilon ?? Math.max(budget.spent, 1);
  find("spent").textContent = `ε ${number(budget.spent)} of ${budget.epsilon === null ? "∞" : number(budget.epsilon)}`;
  bar.firstElementChild.style.width = `${Math.min(100, (100 * budget.spent) / limit)}%`;
  bar.setAttribute("aria-valuemax", limit);
  bar.setAttribute("aria-valuenow", budget.spent);
  bar.setAttribute("aria-valuetext", `epsilon ${number(budget.spent)} of ${number(limit)} spent`);
  pairs("terms", {
    "Unit": budget.unit,
    "Neighbours": budget.neighbours.replace("add or remove", "±"),
    "Delta": String(budget.delta),
    "Accountant": budget.accountant.toUpperCase(),
    "Updates that were made to leave": releases,
    "… trained on what was forgotten since": forgotten,
  });
}

function pairs(id, values) {
  find(id).replaceChildren(...Object.entries(values).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

const number = (value) => (Math.abs(value) < 0.005 ? "0" : value.toFixed(2).replace(/\.?0+$/, ""));
const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function open(title, ...parts) {
  const heading = make("h2", "", title);
  heading.id = "dialog-title";
  find("dialog-body").replaceChildren(heading, ...parts);
  find("dialog").showModal();
}

function effects(rows) {
  const table = make("div", "effects");
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 0.01);
  for (const [name, value] of rows) {
    const scale = make("span", value < 0 ? "scale minus" : "scale");
    scale.append(make("span"));
    scale.firstElementChild.style.width = `${(100 * Math.abs(value)) / most}%`;
    table.append(make("span", "", name), scale, make("span", "value", signed(value)));
  }
  return table;
}

async function explain(film) {
  const found = await ask("reasons", { item: film.id });
  const parts = [];
  if (found.because.length) parts.push(make("h3", "", "Because you liked"), effects(found.because));
  const terms = Object.entries(found.terms).filter(([, value]) => Math.abs(value) >= 0.005);
  parts.push(make("h3", "", "What makes its score"), effects(terms.map(([name, value]) => [MEANING[name] ?? name, value])));
  const features = found.features.filter(([, value]) => Math.abs(value) >= 0.005);
  if (features.length) parts.push(make("h3", "", "Of that, by content"), effects(features.map(([name, value]) => [name.replace("=", ": "), value])));
  if (found.propensity !== null)
    parts.push(make("p", "muted small", `Films are drawn, not only ranked: it came to this place with a probability of ${(100 * found.propensity).toFixed(1)} %.`));
  open(`Why ${film.title}?`, ...parts);
}

function fact(value, name) {
  const box = make("div");
  box.append(make("b", "", value), make("span", "", name));
  return box;
}

/** Every number that would leave, as a bar; neighbouring tensors in two colours. */
function signal(values) {
  const groups = Object.values(values);
  const all = groups.flat();
  const most = Math.max(...all.map(Math.abs), 1e-9);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "signal");
  svg.setAttribute("viewBox", `0 0 ${all.length} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "The numbers of the update");
  let x = 0;
  groups.forEach((group, place) => {
    for (const value of group) {
      const bar = document.createElementNS(SVG, "rect");
      const height = Math.max(0.6, (48 * Math.abs(value)) / most);
      for (const [name, set] of Object.entries({ x: x + 0.1, width: 0.8, y: value > 0 ? 50 - height : 50, height, class: place % 2 ? "b" : "a" })) bar.setAttribute(name, set);
      svg.append(bar);
      x += 1;
    }
  });
  return svg;
}

async function rehearse() {
  const spent = view.status.budget?.spent ?? 0;
  const found = await ask("rehearse", {});
  show(found.view);
  if (found.answer.status !== "ok") {
    const reason = { budget: "The budget is spent. This device answers every further round with a refusal, for good.", consent: "There is no consent." };
    open("Nothing would leave", make("p", "", reason[found.reason] ?? "This device refused the round."));
    return;
  }
  const count = Object.values(found.answer.values).flat().length;
  const facts = make("div", "facts");
  facts.append(
    fact(count, "numbers"), fact(`${found.bytes} B`, "and some headers"), fact(found.norm.toFixed(2), "length, noise included"),
    fact(`ε ${number(spent)} → ${number(view.status.budget?.spent ?? 0)}`, "paid before it was made"),
  );
  open(
    "This is all that would leave",
    make("p", "", "One round of a federation, answered here: the policy was trained on your taps, every tap's pull was cut to a limit, and noise was added before anybody could look."),
    facts, signal(found.answer.values),
    make("p", "muted small", Object.entries(found.answer.values).map(([name, each]) => `${name}: ${each.length} numbers`).join(" · ")),
    make("p", "muted small", "No list of films, no count, no name. This kiosk has no server and sent nothing; it was paid for all the same, because a screen is a way out, too."),
  );
}

function askToForget() {
  const row = make("div", "row");
  const go = make("button", "danger", "Forget everything");
  go.id = "forget-everything";
  go.type = "button";
  go.addEventListener("click", () => act(async () => {
    show(await ask("forget", {}), { compare: false });
    find("dialog").close();
    say("Everything is forgotten. This is the wall that a stranger sees.");
  }));
  row.append(go);
  open(
    "Forget me?",
    make("p", "", `${many(view.status.interactions, "tap")} and ${many(view.status.impressions, "film")} that you were shown go from this device's file, from its bytes, too, and so does what was fine-tuned from them.`),
    make("p", "muted small", "What had left the device under noise can't be called back; the ledger keeps what that cost. Your consent stays as it is set."),
    row,
  );
}

async function download() {
  const content = new Blob([JSON.stringify(await ask("export", {}), null, 2)], { type: "application/json" });
  const link = make("a");
  link.href = URL.createObjectURL(content);
  link.download = "my-data.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const sign of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"]) addEventListener(sign, here, { passive: true });
find("others").addEventListener("click", () => act(async () => {
  show(await ask("others", { slate: view.slate }), { compare: false });
  say("Other films, drawn anew.");
}));
find("consent").addEventListener("change", (event) => act(async () => show(await ask("consent", { given: event.target.checked }))));
find("adapt").addEventListener("click", () => act(async () => say(`Fine-tuned on this device. ${show(await ask("adapt", {}))} films are new.`)));
find("rehearse").addEventListener("click", () => act(rehearse));
find("forget").addEventListener("click", askToForget);
find("export").addEventListener("click", () => act(download));
act(async () => show(await ask("view")));
