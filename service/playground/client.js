/* Talking to the service: every failure becomes one Refusal that carries a sentence. */

const RETRY_STATUSES = [429, 503];
const STALE_DIGEST = 409;

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

/** Fetch, or throw a Refusal with the API's own sentence. An aborted request throws its AbortError. */
export async function request(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.", { retryAfterS: 2 });
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
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

async function refusalOf(response) {
  const body = await response.json().catch(() => ({}));
  const retryAfterS = RETRY_STATUSES.includes(response.status) ? Number(response.headers.get("Retry-After")) || 1 : null;
  let sentence = body.error ?? `The server answered with status ${response.status}.`;
  if (response.status === 500 && body.request_id) sentence += ` (request_id ${body.request_id})`;
  return new Refusal(sentence, { status: response.status, retryAfterS });
}
