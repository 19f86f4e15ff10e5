// Requests to the app. The page says everything to the app, and nothing to the node.

export class Failure extends Error {
  // status 0: the app did not answer at all.
  constructor(status, reason, sentence) {
    super(sentence);
    this.status = status;
    this.reason = reason;
  }
}

async function ask(path, options) {
  let response, body;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
    body = await response.json();
  } catch (error) {
    throw new Failure(0, "no-app", String(error));
  }
  if (!response.ok) throw new Failure(response.status, body.reason, body.error);
  return body;
}

export const whoAmI = () => ask("/me");

export const post = (path, body = {}) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const upload = (file, to, key) =>
  ask(`/files?${new URLSearchParams({ to, key })}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", "X-File-Name": encodeURIComponent(file.name) },
    body: file,
  });

// crypto.randomUUID is missing where the page does not come by https or from this machine, as on a phone.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
}
