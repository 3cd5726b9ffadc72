/* What images are called, and at which width they are sharp: addresses, file names, classes, texts, commands.
 *
 * Pure functions of a model (as `/v1/models` describes it), a seed and a view (view.js).
 * A parameter that has its default is left out, so that one image has one address and one place in a cache.
 */

const MAX_PIXELATED = 128;

export const hasTruncation = (model) => model.truncation !== "none";

/** The parameters of `view` that differ from the model's defaults, named as the API names them. */
export function parameters(model, view) {
  const chosen = {};
  if (model.num_classes > 0 && view.class_idx !== null) chosen.class_idx = view.class_idx;
  if (hasTruncation(model) && view.truncation_psi !== 1) chosen.truncation_psi = view.truncation_psi;
  return chosen;
}

export function imageAddress(model, seed, view) {
  return withQuery(model.image_url.replace("{seed}", seed), parameters(model, view));
}

export function walkAddress(model, view, frames) {
  const ends = { from: view.from, to: view.to, frames };
  return withQuery(`/v1/models/${model.name}/walk`, { ...ends, ...parameters(model, view) });
}

export const absolute = (address) => new URL(address, location.href).href;

export const imageFile = (model, seed) => `${model.name}-seed${String(seed).padStart(10, "0")}.png`;

/** The key itself is never written out: the command takes it from the shell's $KEY. */
export const curlCommand = (model, seed, view, withKey) =>
  `curl -o ${imageFile(model, seed)} ${withKey ? '-H "Authorization: Bearer $KEY" ' : ""}'${absolute(imageAddress(model, seed, view))}'`;

/** The class that names the image of `seed`, or null where the model has none. */
export function classOf(model, seed, view) {
  return model.num_classes > 0 ? className(model, view.class_idx ?? seed % model.num_classes) : null;
}

export const className = (model, class_idx) => model.class_names[class_idx] ?? `class ${class_idx}`;

export function altText(model, seed, view) {
  const name = classOf(model, seed, view);
  return `${model.name} seed ${seed}` + (name === null ? "" : `, ${name}`);
}

/** Whether a model's images are shown as squares of pixels; larger images look better smoothed. */
export const isPixelated = (model) => model.img_width <= MAX_PIXELATED;

/** The width in CSS pixels, at most `room`, at which each image pixel covers a whole number of screen pixels. */
export function crispWidth(model, room) {
  const step = model.img_width / window.devicePixelRatio;
  return step > room || !isPixelated(model) ? room : Math.floor(room / step) * step;
}

function withQuery(path, values) {
  const query = new URLSearchParams(values).toString();
  return query ? `${path}?${query}` : path;
}
