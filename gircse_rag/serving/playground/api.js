// Asks the server. The API key, if it wants one, stays in this module's memory.

import { byId } from "./dom.js";

let key = null;

/** GET, or POST if there is a body. Throws an Error with the server's own sentence. */
export async function ask(path, body, signal) {
  for (;;) {
    const answer = await send(path, body, signal);
    if (answer.status === 401) {
      await askForKey(key !== null);
      continue;
    }
    const content = await answer.json().catch(() => null);
    if (answer.ok && content !== null) return content;
    const message = content?.error?.message ?? `the server answered ${answer.status}, and not with JSON`;
    throw Object.assign(new Error(message), { status: answer.status, code: content?.error?.code });
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (key !== null) headers["Authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is it still running?");
  }
}

let waiting = null;

/** Show the dialog until a key was entered; several requests share one dialog. */
function askForKey(wrong) {
  waiting ??= new Promise((resolve) => {
    const dialog = byId("ask-key");
    byId("key-text").textContent = wrong
      ? "The server refused this key. Enter another one."
      : "This server wants a key. The page keeps it until you close or reload it.";
    byId("key").value = "";
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = byId("key").value.trim();
      dialog.close();
      waiting = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault(); // there is nothing to see without the key
    dialog.showModal();
  });
  return waiting;
}
