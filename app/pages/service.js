/** What the page asks of the service it came from. */

export class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function request(path, key, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "", null);
  }
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => null);
  throw new Refusal(answer.status, body?.error?.message ?? answer.statusText, Number(answer.headers.get("Retry-After")) || null);
}

export const information = (key) => request("info", key);

export const explain = (body, key, signal) =>
  request("explain", key, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });
