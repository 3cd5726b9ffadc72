/* Talking to the service: every failure becomes one Refusal that carries a sentence.
 *
 * Where the service wants an API key it is asked for once and kept for this tab only. Browsers send no key
 * for an <img>, so with a key images are fetched like everything else.
 */

const RETRY_STATUSES = [429, 503];
const STALE_DIGEST = 409;
const UNAUTHORIZED = 401;
const KEY_ITEM = "ganserve.key";

let key = sessionStorage.getItem(KEY_ITEM);
let askForKey = async () => null;
let asking = null; // the one question that all waiting requests share
const loading = new WeakMap(); // image -> what aborts its fetch

/** An answer that is no success. `retryAfterS` is null where asking again would not help. */
export class Refusal extends Error {
  constructor(sentence, { status = 0, retryAfterS = null } = {}) {
    super(sentence);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  /** The model was replaced since its facts were read. */
  get isStale() {
    return this.status === STALE_DIGEST;
  }
}

/** `ask(sentence)` is called when a key is needed; it gives one, or null where the person has none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const hasKey = () => key !== null;

/** Fetch, or throw a Refusal with the API's own sentence. An aborted request throws its AbortError. */
export async function request(address, options = {}) {
  for (;;) {
    const used = key;
    const response = await ask(address, options, used);
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    if (response.status !== UNAUTHORIZED || !(await getKey(used, refusal))) throw refusal;
  }
}

/** Show the image at `address` in an <img>, which tells with its events how that went. */
export async function showImage(image, address) {
  image.dataset.address = address;
  loading.get(image)?.abort();
  if (!hasKey() || address.startsWith("blob:")) {
    image.src = address;
    return;
  }
  const abort = new AbortController();
  loading.set(image, abort);
  try {
    const blobAddress = URL.createObjectURL(await (await request(address, { signal: abort.signal })).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(blobAddress), { once: true });
    image.src = blobAddress;
  } catch (error) {
    if (error.name !== "AbortError") image.dispatchEvent(new Event("error"));
  }
}

/** Have the browser save `blob` as `file`. */
export function save(blob, file) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click returns
}

/** The models served, once the one that `wanted(models)` picks is ready. Meanwhile `say` is given sentences. */
export async function readyModels(wanted, say) {
  for (;;) {
    let waitS = 0.5;
    try {
      const { models } = await (await request("/v1/models", { cache: "no-store" })).json();
      if (models.length > 0 && wanted(models).ready) return models;
      say("The model is loading…");
    } catch (refusal) {
      if (!refusal.retryAfterS) throw refusal;
      say(refusal.status === 503 ? "The model is loading…" : waitingSentence(refusal));
      waitS = refusal.retryAfterS;
    }
    await sleep(waitS);
  }
}

export const waitingSentence = (refusal) => `${refusal.message.replace(/\.$/, "")}; trying again…`;

export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function ask(address, options, used) {
  const headers = { ...options.headers, ...(used === null ? {} : { Authorization: `Bearer ${used}` }) };
  try {
    return await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.", { retryAfterS: 2 });
  }
}

/** Have another key than the one that was refused; false where there is none. */
async function getKey(refused, refusal) {
  if (key === refused) {
    asking ??= askForKey(refused === null ? "This service wants an API key." : `${refusal.message}.`);
    const given = await asking;
    asking = null;
    if (given === null) return false;
    key = given;
    sessionStorage.setItem(KEY_ITEM, key);
  }
  return true;
}

async function refusalOf(response) {
  const body = await response.json().catch(() => ({}));
  const retryAfterS = RETRY_STATUSES.includes(response.status) ? Number(response.headers.get("Retry-After")) || 1 : null;
  let sentence = body.error ?? `The server answered with status ${response.status}.`;
  if (response.status === 500 && body.request_id) sentence += ` (request_id ${body.request_id})`;
  return new Refusal(sentence, { status: response.status, retryAfterS });
}
