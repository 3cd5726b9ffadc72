/* The grid: one tile a seed, laid out so that pixels stay square, walked with the arrow keys.
 *
 * Tiles have their size before their image is there, so nothing moves while images load. Exactly one tile
 * can be reached with Tab (a roving tabindex); the others are reached with the arrow keys.
 */

import { altText, classOf, crispWidth, imageAddress } from "./addresses.js";
import { showImage } from "./client.js";

const MIN_TILE = 92; // CSS pixels; three tiles fit the narrowest phone
const MAX_TILE = 176;
const MAX_PHONE_TILE = 132;
const PHONE = 600; // CSS pixels, as in style.css
const UNEVEN_ROW = 96; // CSS pixels of spare room that we take to have the last row full

export class Grid {
  /** `actions`: open(seed), walkEnd("from" | "to", seed), page(-1 | 1), loaded(), failed(address). */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.current = 0;
    list.addEventListener("keydown", (event) => this.#onKey(event));
    list.addEventListener("focusin", (event) => this.#makeCurrent(this.#indexOf(event.target)));
    new ResizeObserver(() => this.#layOut()).observe(list);
  }

  show(model, seeds, view) {
    this.model = model;
    this.seeds = seeds;
    while (this.list.children.length < seeds.length) this.list.append(this.#newTile());
    while (this.list.children.length > seeds.length) this.list.lastChild.remove();
    this.#makeCurrent(Math.min(this.current, seeds.length - 1));
    this.#layOut();
    this.#tiles().forEach((tile, row) => fillTile(tile, model, seeds[row], view));
    this.#settle();
  }

  focus(seed) {
    const row = this.seeds.indexOf(seed);
    if (row >= 0) this.#tiles()[row].focus();
  }

  /** Ask again for the images that failed. */
  retry() {
    for (const tile of this.#tiles().filter((one) => one.dataset.state === "failed")) {
      const image = tile.querySelector("img");
      tile.dataset.state = "loading";
      showImage(image, image.dataset.address);
    }
    this.#settle();
  }

  #tiles() {
    return [...this.list.querySelectorAll(".tile")];
  }

  #indexOf(element) {
    return this.#tiles().indexOf(element.closest(".tile"));
  }

  #newTile() {
    const item = document.createElement("li");
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.tabIndex = -1;
    tile.append(picture(tile, this), caption("tile-seed"), caption("tile-class"));
    tile.addEventListener("click", () => this.actions.open(this.seeds[this.#indexOf(tile)]));
    item.append(tile);
    return item;
  }

  imageDone(tile, state) {
    tile.dataset.state = state;
    if (state === "failed") this.actions.failed(tile.querySelector("img").dataset.address);
    this.#settle();
  }

  #settle() {
    const busy = this.list.querySelector('.tile[data-state="loading"]') !== null;
    this.list.setAttribute("aria-busy", String(busy));
    if (!busy && this.list.querySelector('.tile[data-state="failed"]') === null) this.actions.loaded();
  }

  #layOut() {
    if (!this.model || this.list.clientWidth === 0) return;
    const { columns, size, spread } = bestColumns(this.model, this.seeds.length, this.list.clientWidth);
    this.columns = columns;
    this.list.style.setProperty("--columns", columns);
    this.list.style.setProperty("--tile", `${size}px`);
    this.list.style.setProperty("--gap", `${spread}px`);
    this.list.style.setProperty("--ratio", this.model.img_width / this.model.img_height);
  }

  #makeCurrent(row) {
    const tiles = this.#tiles();
    if (row < 0 || tiles.length === 0) return;
    if (tiles[this.current]) tiles[this.current].tabIndex = -1;
    this.current = row;
    tiles[row].tabIndex = 0;
  }

  #onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.seeds.length - 1;
    const moves = {
      ArrowLeft: this.current - 1,
      ArrowRight: this.current + 1,
      ArrowUp: this.current - this.columns,
      ArrowDown: this.current + this.columns,
      Home: 0,
      End: last,
    };
    const acts = {
      PageUp: () => this.actions.page(-1),
      PageDown: () => this.actions.page(1),
      a: () => this.actions.walkEnd("from", this.seeds[this.current]),
      b: () => this.actions.walkEnd("to", this.seeds[this.current]),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!(key in moves) && !(key in acts)) return;
    event.preventDefault();
    if (key in acts) acts[key]();
    else if (moves[key] >= 0 && moves[key] <= last) this.#tiles()[moves[key]].focus();
  }
}

function picture(tile, grid) {
  const frame = document.createElement("span");
  frame.className = "tile-picture";
  const image = document.createElement("img");
  image.alt = "";
  image.draggable = false;
  image.addEventListener("load", () => grid.imageDone(tile, "shown"));
  image.addEventListener("error", () => grid.imageDone(tile, "failed"));
  frame.append(image);
  return frame;
}

function caption(name) {
  const text = document.createElement("span");
  text.className = name;
  return text;
}

function fillTile(tile, model, seed, view) {
  const image = tile.querySelector("img");
  const address = imageAddress(model, seed, view);
  image.alt = altText(model, seed, view);
  tile.querySelector(".tile-seed").textContent = seed;
  tile.querySelector(".tile-class").textContent = classOf(model, seed, view) ?? "";
  tile.querySelector(".tile-picture").dataset.end = (seed === view.from ? "A" : "") + (seed === view.to ? "B" : "");
  if (image.dataset.address === address) return;
  tile.dataset.state = "loading";
  showImage(image, address);
}

/** How many columns of which tile width fill `width` best; what is left over is spread between them. */
function bestColumns(model, count, width) {
  const [gap, largest] = width < PHONE ? [10, MAX_PHONE_TILE] : [16, MAX_TILE];
  let best = null;
  for (let columns = 2; (width + gap) / columns - gap >= MIN_TILE || best === null; columns += 1) {
    const size = crispWidth(model, Math.min(largest, (width + gap) / columns - gap));
    const spare = width - columns * size - (columns - 1) * gap;
    const cost = spare + (count % columns === 0 ? 0 : UNEVEN_ROW);
    if (best === null || cost < best.cost) best = { columns, size, cost, spread: gap + spare / (columns - 1) };
  }
  return best;
}
