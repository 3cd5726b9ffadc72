/* The detail panel: one image large, its seed, its address, and what can be done with it. */

import { absolute, altText, classOf, crispWidth, curlCommand, hasTruncation, imageAddress, imageFile } from "./addresses.js";
import { hasKey, request, save, showImage } from "./client.js";
import { MAX_SEED } from "./view.js";

const MAX_PICTURE = 480; // CSS pixels
const MIN_PICTURE = 240;
const $ = (id) => document.getElementById(id);

export class Detail {
  /** `actions`: step(seed) when a neighbour is asked for, walkEnd("from" | "to", seed), closed(seed). */
  constructor(actions) {
    this.panel = $("detail");
    this.actions = actions;
    makeDialog(this.panel, () => actions.closed(this.seed));
    $("detail-previous").addEventListener("click", () => this.#step(-1));
    $("detail-next").addEventListener("click", () => this.#step(1));
    $("detail-from").addEventListener("click", () => this.#useAs("from"));
    $("detail-to").addEventListener("click", () => this.#useAs("to"));
    $("detail-download").addEventListener("click", (event) => this.#download(event));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#step(-1);
      if (event.key === "ArrowRight") this.#step(1);
    });
  }

  show(model, seed, view) {
    this.seed = seed;
    showPicture($("detail-image"), model, imageAddress(model, seed, view), altText(model, seed, view));
    $("detail-title").textContent = `Seed ${seed}`;
    showPair("detail-class", classOf(model, seed, view));
    showPair("detail-psi", hasTruncation(model) ? view.truncation_psi.toFixed(2) : null);
    $("detail-digest").textContent = model.digest;
    $("detail-address").textContent = absolute(imageAddress(model, seed, view));
    $("detail-curl").textContent = curlCommand(model, seed, view, hasKey());
    $("detail-download").href = imageAddress(model, seed, view);
    $("detail-download").download = imageFile(model, seed);
    $("detail-previous").disabled = seed === 0;
    $("detail-next").disabled = seed === MAX_SEED;
    $("detail-note").textContent = "";
    if (!this.panel.open) this.panel.showModal();
  }

  #step(by) {
    const seed = this.seed + by;
    if (seed >= 0 && seed <= MAX_SEED) this.actions.step(seed);
  }

  /** A link sends no key: with one the file is fetched here. */
  async #download(event) {
    if (!hasKey()) return;
    event.preventDefault();
    const { href, download } = event.currentTarget;
    try {
      save(await (await request(href)).blob(), download);
    } catch (refusal) {
      $("detail-note").textContent = refusal.message;
    }
  }

  #useAs(end) {
    this.panel.close();
    this.actions.walkEnd(end, this.seed);
  }
}

/** Give a <dialog> its close button, its copy buttons, and a backdrop that closes it. */
export function makeDialog(panel, closed) {
  panel.addEventListener("close", closed);
  panel.addEventListener("click", (event) => {
    if (event.target === panel || event.target.closest("[data-close]")) panel.close();
    const copy = event.target.closest("[data-copy]");
    if (copy) copyText($(copy.dataset.copy), panel.querySelector(".note"));
  });
}

/** Show an image as large as fits the panel, at a whole multiple of its pixels. */
export function showPicture(image, model, address, alt) {
  const { clientWidth, clientHeight } = document.documentElement;
  const room = Math.min(MAX_PICTURE, clientWidth - 48, Math.max(MIN_PICTURE, clientHeight - 120));
  image.style.width = `${crispWidth(model, room)}px`;
  image.style.aspectRatio = `${model.img_width} / ${model.img_height}`;
  image.alt = alt;
  showImage(image, address);
}

function showPair(id, text) {
  $(id).parentElement.hidden = text === null;
  $(id).textContent = text ?? "";
}

async function copyText(element, note) {
  getSelection().selectAllChildren(element);
  try {
    // Over plain HTTP from another machine there is no clipboard object; the selected text can still be copied.
    if (navigator.clipboard) await navigator.clipboard.writeText(element.textContent);
    else if (!document.execCommand("copy")) throw new Error("refused");
    note.textContent = "Copied.";
  } catch {
    note.textContent = "The browser refused to copy; the text is selected, so Ctrl+C copies it.";
  }
}
