// Asking the server. Whatever goes wrong is an Error with a sentence for people.

const KEY = "mlx_convnextv2 key";
const TRIES = 5;

export class KeyNeeded extends Error {}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

// The answer to a request, which was successful.
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  for (let tried = 1; ; tried += 1) {
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("The server does not answer. Start it again, then try once more.");
    }
    if (response.ok) return response;
    if (response.status === 503 && tried < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => { setTimeout(resolve, seconds * 1000 * tried); });
      continue;
    }
    const { error } = await response.json().catch(() => ({}));
    if (response.status === 401) throw new KeyNeeded(error);
    throw new Error(error ?? `The server answers with status ${response.status}.`);
  }
}

function post(path, picture) {
  return ask(path, { method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" } });
}

export async function info() {
  return (await ask("info")).json();
}

// [{label, score, index}], the best first.
export async function classify(picture, topK = 5) {
  return (await post(`./?top_k=${topK}`, picture)).json();
}

// A picture with the heat map of a label over it.
export async function explain(picture, index, layer) {
  const query = new URLSearchParams({ label: `#${index}`, layer, legend: "false" });
  return (await post(`explain?${query}`, picture)).blob();
}
