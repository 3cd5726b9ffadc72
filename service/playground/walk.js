/* The walk between two images: the tray that collects its ends, and the panel that shows it. */

import { absolute, altText, crispWidth, imageAddress, walkAddress } from "./addresses.js";
import { request, showImage } from "./client.js";
import { makeDialog, showPicture } from "./detail.js";

const THUMBNAIL = 64; // CSS pixels
const $ = (id) => document.getElementById(id);

export class Walk {
  /** `actions`: show() and swap() and clear(), asked for by the person. */
  constructor(actions) {
    this.panel = $("walk");
    this.pending = null;
    makeDialog(this.panel, () => this.#stop());
    $("tray-show").addEventListener("click", actions.show);
    $("tray-clear").addEventListener("click", actions.clear);
    $("walk-swap").addEventListener("click", actions.swap);
    $("walk-frames").addEventListener("change", actions.show);
  }

  showTray(model, view) {
    const chosen = view.from !== null || view.to !== null;
    $("tray").hidden = !chosen;
    document.body.classList.toggle("has-tray", chosen);
    $("tray-show").disabled = view.from === null || view.to === null;
    showEnd($("tray-from"), "A", model, view.from, view);
    showEnd($("tray-to"), "B", model, view.to, view);
  }

  /** Open the panel and play the walk from view.from to view.to. */
  async show(model, view) {
    const address = walkAddress(model, view, $("walk-frames").value);
    this.#describe(model, view, address);
    if (!this.panel.open) this.panel.showModal();
    this.#stop();
    const pending = (this.pending = new AbortController());
    try {
      const blob = await (await request(address, { signal: pending.signal })).blob();
      if (this.pending === pending) this.#play(model, view, blob);
    } catch (error) {
      if (error.name !== "AbortError") this.#say(error.message, "failed");
    }
  }

  #describe(model, view, address) {
    $("walk-title").textContent = `Walk from seed ${view.from} to seed ${view.to}`;
    showThumbnail($("walk-from"), model, view.from, view);
    showThumbnail($("walk-to"), model, view.to, view);
    // Until the walk arrives its place is taken by the image it starts from.
    showPicture($("walk-image"), model, imageAddress(model, view.from, view), altText(model, view.from, view));
    $("walk-address").textContent = absolute(address);
    $("walk-download").removeAttribute("href");
    this.#say("Making the walk…", "loading");
  }

  #play(model, view, blob) {
    this.blobAddress = URL.createObjectURL(blob);
    showPicture($("walk-image"), model, this.blobAddress, `${model.name} walk from seed ${view.from} to seed ${view.to}`);
    $("walk-download").href = this.blobAddress;
    $("walk-download").download = `${model.name}-walk-${view.from}-${view.to}.webp`;
    const jumps = model.num_classes > 0 && view.class_idx === null && (view.to - view.from) % model.num_classes !== 0;
    this.#say(jumps ? "The ends have different classes, so the class changes half-way. Choose one class for a smooth walk." : "", "shown");
  }

  #stop() {
    this.pending?.abort();
    this.pending = null;
    if (this.blobAddress) URL.revokeObjectURL(this.blobAddress);
    this.blobAddress = null;
  }

  #say(sentence, state) {
    $("walk-note").textContent = sentence;
    $("walk-picture").dataset.state = state;
  }
}

function showEnd(place, letter, model, seed, view) {
  const badge = document.createElement("b");
  badge.textContent = letter;
  place.replaceChildren(badge);
  place.classList.toggle("empty", seed === null);
  if (seed === null) {
    place.append(letter === "A" ? "choose the start" : "choose the end");
    return;
  }
  const image = document.createElement("img");
  showThumbnail(image, model, seed, view, THUMBNAIL / 2);
  place.append(image, String(seed));
}

function showThumbnail(image, model, seed, view, room = THUMBNAIL) {
  image.style.width = `${crispWidth(model, room)}px`;
  image.style.aspectRatio = `${model.img_width} / ${model.img_height}`;
  image.alt = altText(model, seed, view);
  showImage(image, imageAddress(model, seed, view));
}
