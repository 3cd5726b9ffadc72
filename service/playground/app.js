/* The page's conductor: reads the view from the address bar, shows it, and turns what a person does into a new view.
 *
 * One way round: every action calls `change`, which writes the query string and shows the view again.
 * addresses.js names images, view.js owns the query string, client.js asks the service, grid.js, detail.js
 * and walk.js own their part of the page.
 */

import { className, hasTruncation, isPixelated, parameters } from "./addresses.js";
import { onKeyNeeded, readyModels, request, save, sleep, waitingSentence } from "./client.js";
import { Detail } from "./detail.js";
import { Grid } from "./grid.js";
import { COUNTS, MAX_SEED, parseSeed, readView, seedsOf, writeView } from "./view.js";
import { Walk } from "./walk.js";

const SLIDER_REST_MS = 120; // a slider that rests this long has its value
const $ = (id) => document.getElementById(id);

let models = [];
let model = null;
let view = null;
let recovering = false;
let psiTimer = null;
let trouble = ""; // a sentence that stays until the next action

const walk = new Walk({ show: () => walk.show(model, view), swap: swapEnds, clear: () => change({ from: null, to: null }) });
const detail = new Detail({ step: showDetail, walkEnd: chooseEnd, closed: (seed) => grid.focus(seed) });
const grid = new Grid($("grid"), { open: showDetail, walkEnd: chooseEnd, page: turnPage, loaded: sayWhatIsShown, failed: recover });

// -- the view -------------------------------------------------------------------------------------

async function start() {
  const query = new URLSearchParams(location.search);
  await readModels(query);
  listenToControls();
}

async function readModels(query) {
  const wanted = (served) => served.find((one) => one.name === query.get("model")) ?? served[0];
  models = await readyModels(wanted, say);
  const read = readView(query, models);
  ({ view, model } = read);
  fillModelPicker();
  fillCounts();
  showModel();
  trouble = read.problems.join(" ");
  showView();
}

function change(difference) {
  clearTimeout(psiTimer);
  trouble = "";
  Object.assign(view, difference);
  showView();
}

function showView() {
  history.replaceState(null, "", writeView(view, models));
  showControls();
  grid.show(model, seedsOf(view), view);
  walk.showTray(model, view);
  if (trouble) say(trouble, "problem");
}

function changeModel(name) {
  model = models.find((one) => one.name === name);
  showModel();
  change({ model: name, class_idx: null, truncation_psi: 1 });
}

// -- what the model is ----------------------------------------------------------------------------

function showModel() {
  document.title = `${model.name} · ganserve`;
  document.body.classList.toggle("pixelated", isPixelated(model));
  $("model-name").replaceChildren(model.name, element("span", `:${model.version}`));
  $("facts").replaceChildren(...factsOf(model).map(([text, title]) => Object.assign(element("li", text), { title })));
  fillClasses();
  $("class-field").hidden = model.num_classes === 0;
  $("psi-field").hidden = !hasTruncation(model);
  $("controls").inert = $("zip").inert = false;
}

function factsOf({ img_width, img_height, img_channels, num_classes, digest, determinism }) {
  const colours = img_channels === 1 ? "grey" : "RGB";
  const facts = [[`${img_width} × ${img_height} ${colours}`, "width and height in pixels"]];
  if (num_classes > 0) facts.push([`${num_classes} classes`, "the generator takes a class"]);
  facts.push([`digest ${digest.slice(0, 12)}`, digest]);
  if (determinism === "bit_exact") facts.push(["bit-exact", "at start, known images were made again and every pixel was equal"]);
  else if (determinism) facts.push([determinism.replace(/^differs by \d+/, "$& grey levels"), "at start, known images were made again; this is the largest difference"]);
  return facts;
}

function fillModelPicker() {
  $("model").replaceChildren(...models.map((one) => new Option(`${one.name}:${one.version}`, one.name)));
  $("model-field").hidden = models.length < 2;
}

function fillClasses() {
  const classes = Array.from({ length: model.num_classes }, (_, class_idx) => new Option(className(model, class_idx), class_idx));
  $("class").replaceChildren(new Option("each seed's own", ""), ...classes);
}

function fillCounts() {
  $("counts").replaceChildren(...COUNTS.map(countChoice));
}

function countChoice(count) {
  const label = element("label", String(count));
  label.className = "choice";
  label.prepend(Object.assign(element("input"), { type: "radio", name: "n", value: count }));
  return label;
}

// -- controls -------------------------------------------------------------------------------------

function listenToControls() {
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    takeSeed();
  });
  $("seed").addEventListener("change", takeSeed);
  $("previous").addEventListener("click", () => turnPage(-1));
  $("next").addEventListener("click", () => turnPage(1));
  $("random").addEventListener("click", () => change({ seed: crypto.getRandomValues(new Uint32Array(1))[0] }));
  $("counts").addEventListener("change", (event) => change({ n: Number(event.target.value) }));
  $("class").addEventListener("change", () => change({ class_idx: $("class").value === "" ? null : Number($("class").value) }));
  $("psi").addEventListener("input", takePsiWhenItRests);
  $("model").addEventListener("change", () => changeModel($("model").value));
  $("zip").addEventListener("click", downloadZip);
}

function showControls() {
  $("model").value = view.model;
  $("seed").value = view.seed;
  $("seed").removeAttribute("aria-invalid");
  $("previous").disabled = view.seed === 0;
  $("next").disabled = view.seed + view.n > MAX_SEED;
  $("class").value = view.class_idx ?? "";
  $("psi").value = view.truncation_psi;
  showPsi(view.truncation_psi);
  for (const radio of $("counts").querySelectorAll("input")) radio.checked = Number(radio.value) === view.n;
}

function takeSeed() {
  try {
    change({ seed: parseSeed($("seed").value) });
  } catch (problem) {
    $("seed").setAttribute("aria-invalid", "true");
    trouble = problem.message;
    say(trouble, "problem");
  }
}

function takePsiWhenItRests() {
  showPsi(Number($("psi").value));
  clearTimeout(psiTimer);
  psiTimer = setTimeout(() => change({ truncation_psi: Number($("psi").value) }), SLIDER_REST_MS);
}

function showPsi(truncation_psi) {
  $("psi-value").textContent = truncation_psi.toFixed(2);
}

function turnPage(by) {
  const seed = Math.max(0, view.seed + by * view.n);
  if (seed <= MAX_SEED && seed !== view.seed) change({ seed });
}

async function downloadZip() {
  const seeds = seedsOf(view);
  const body = { model: model.name, seed: seeds[0], n: seeds.length, ...parameters(model, view), format: "png", container: "zip" };
  const file = `${model.name}-seeds-${seeds[0]}-${seeds.at(-1)}.zip`;
  $("zip").disabled = true;
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    save(await (await request("/v1/samples", options)).blob(), file);
    say(`${seeds.length} images are in ${file}.`);
  } catch (refusal) {
    say(refusal.message, "problem");
  }
  $("zip").disabled = false;
}

// -- one image, and two ---------------------------------------------------------------------------

function showDetail(seed) {
  const seeds = seedsOf(view);
  if (seed < seeds[0]) turnPage(-1);
  if (seed > seeds.at(-1)) turnPage(1);
  detail.show(model, seed, view);
}

function chooseEnd(end, seed) {
  change({ [end]: seed });
  if (view.from !== null && view.to !== null) walk.show(model, view);
  else say(end === "from" ? `The walk starts at seed ${seed}. Now choose its end.` : `The walk ends at seed ${seed}. Now choose its start.`);
}

function swapEnds() {
  change({ from: view.to, to: view.from });
  walk.show(model, view);
}

// -- the key --------------------------------------------------------------------------------------

const KEY_CHARACTERS = /^[A-Za-z0-9._~+/=-]+$/; // a header could not carry every other

/** Ask the person for an API key; null if they close the question. */
function askForKey(sentence) {
  $("key-note").textContent = sentence;
  $("key-value").value = "";
  $("key").returnValue = "";
  $("key").showModal();
  return new Promise((resolve) => {
    const answer = () => {
      const given = ($("key").returnValue === "use" && $("key-value").value.trim()) || null;
      if (given === null || KEY_CHARACTERS.test(given)) return resolve(given);
      resolve(askForKey("A key has only letters A to Z, digits and . _ ~ + / = -; this one has others."));
    };
    $("key").addEventListener("close", answer, { once: true });
  });
}

// -- sentences ------------------------------------------------------------------------------------

function say(sentence, kind = "news") {
  $("status").textContent = sentence;
  $("status").dataset.kind = kind;
}

function sayWhatIsShown() {
  if (trouble) return;
  const seeds = seedsOf(view);
  say(seeds.length === 1 ? `Seed ${seeds[0]}` : `Seeds ${seeds[0]} to ${seeds.at(-1)}`);
}

/** An image did not come: learn why from its address, say so, and ask again where that helps. */
async function recover(address) {
  if (recovering) return;
  recovering = true;
  try {
    await request(address, { cache: "no-store" });
    grid.retry();
  } catch (refusal) {
    if (refusal.isStale) await readModels(new URLSearchParams(location.search));
    else if (refusal.retryAfterS) await retryLater(refusal);
    else say(refusal.message, "problem");
  }
  recovering = false;
}

async function retryLater(refusal) {
  say(waitingSentence(refusal));
  await sleep(refusal.retryAfterS);
  grid.retry();
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

onKeyNeeded(askForKey);
start().catch((error) => say(error.message, "problem"));
