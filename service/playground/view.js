/* The view: which model, seeds and parameters the page shows. It lives in the page's query string.
 *
 * {model, seed, n, class_idx | null, truncation_psi, from | null, to | null}; class_idx null is "each seed's
 * own class", from and to are the ends of a walk. Values a model cannot take become its default, with a sentence.
 */

import { hasTruncation } from "./addresses.js";

export const MAX_SEED = 2 ** 32 - 1;
export const COUNTS = [12, 24, 48, 96];
const MAX_PSI = 1.5;
const DEFAULTS = { seed: 0, n: 24, class_idx: null, truncation_psi: 1, from: null, to: null };

/** Read a seed as a person writes it. Throws a sentence. */
export function parseSeed(text, field = "first seed") {
  return parseWhole(text, MAX_SEED, field);
}

/** Read the query string. Returns the view, its model, and a sentence for each value that was refused. */
export function readView(query, models) {
  const problems = [];
  const read = (key, parse, fallback) => {
    const text = query.get(key);
    if (text === null) return fallback;
    try {
      return parse(text);
    } catch (problem) {
      problems.push(problem.message);
      return fallback;
    }
  };
  const model = read("model", (name) => findModel(models, name), models[0]);
  const view = {
    model: model.name,
    seed: read("seed", parseSeed, DEFAULTS.seed),
    n: read("n", parseCount, DEFAULTS.n),
    class_idx: read("class", (text) => parseClass(text, model), DEFAULTS.class_idx),
    truncation_psi: read("psi", (text) => parsePsi(text, model), DEFAULTS.truncation_psi),
    from: read("from", (text) => parseSeed(text, "walk start"), DEFAULTS.from),
    to: read("to", (text) => parseSeed(text, "walk end"), DEFAULTS.to),
  };
  return { view, model, problems };
}

/** The query string that shows `view` again; a default is left out. */
export function writeView(view, models) {
  const query = new URLSearchParams();
  if (view.model !== models[0].name) query.set("model", view.model);
  query.set("seed", view.seed);
  if (view.n !== DEFAULTS.n) query.set("n", view.n);
  if (view.class_idx !== null) query.set("class", view.class_idx);
  if (view.truncation_psi !== DEFAULTS.truncation_psi) query.set("psi", view.truncation_psi);
  if (view.from !== null) query.set("from", view.from);
  if (view.to !== null) query.set("to", view.to);
  return `?${query}`;
}

/** The seeds a view shows: seed, seed+1, …, and never past the last one there is. */
export function seedsOf(view) {
  const count = Math.min(view.n, MAX_SEED - view.seed + 1);
  return Array.from({ length: count }, (_, row) => view.seed + row);
}

function findModel(models, name) {
  const model = models.find((one) => one.name === name);
  if (model === undefined) throw new Error(`This server has no model “${name}”.`);
  return model;
}

function parseCount(text) {
  if (!COUNTS.includes(Number(text))) throw new Error(`The number of images must be one of ${COUNTS.join(", ")}, got “${text}”.`);
  return Number(text);
}

function parseClass(text, model) {
  if (model.num_classes === 0) throw new Error(`Model ${model.name} has no classes, got “${text}”.`);
  return parseWhole(text, model.num_classes - 1, "class");
}

function parsePsi(text, model) {
  if (!hasTruncation(model)) throw new Error(`Model ${model.name} has no truncation, got “${text}”.`);
  const psi = Number(text);
  if (text.trim() === "" || !(psi >= 0 && psi <= MAX_PSI)) throw new Error(`The truncation must be between 0 and ${MAX_PSI}, got “${text}”.`);
  return psi;
}

function parseWhole(text, largest, field) {
  const trimmed = text.trim();
  if (!/^\d{1,10}$/.test(trimmed) || Number(trimmed) > largest) {
    throw new Error(`The ${field} must be a whole number between 0 and ${largest}, got “${trimmed}”.`);
  }
  return Number(trimmed);
}
