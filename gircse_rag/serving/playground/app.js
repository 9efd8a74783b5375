// The page: its form, its tabs, and what they show.
//
//   form ─► one request per instruction ─► searches (by instruction) ─► rankings, settling, tokens, map
//
// A search: {instruction, steps: [[{id, score}]], passages: {id: {document, text, metadata}}, soft_tokens, vectors, seconds}

import { ask } from "./api.js";
import { LETTERS, byId, make, seconds } from "./dom.js";
import { showRankings } from "./rankings.js";
import { setUpSettling, showSettling } from "./settling.js";
import { showTokens } from "./tokens.js";
import { setUpMap, showMap } from "./map.js";
import { setUpCompare } from "./compare.js";

const state = { settings: null, collections: [], searches: [], step: 1, running: null };

const collection = () => byId("collection").value;

// Instructions -----------------------------------------------------------------------------------------------------

const instructionInputs = () => [...byId("instructions").querySelectorAll("input")];

function addInstruction(text = "") {
  const index = instructionInputs().length;
  const id = `instruction-${index}`;
  const input = make("input", { id, type: "text", placeholder: "Given X, retrieve Y", required: "" });
  input.value = text;
  const row = make("div", { class: `instruction of-${index}` }, make("label", { for: id }, LETTERS[index]), input);
  if (index > 0) {
    row.append(make("button", { type: "button", "aria-label": `Remove instruction ${LETTERS[index]}`, onclick: removeLast }, "✕"));
  }
  byId("instructions").append(row);
  updateInstructions();
  return input;
}

function removeLast(event) {
  const row = event.currentTarget.closest(".instruction");
  const inputs = instructionInputs();
  const index = [...byId("instructions").children].indexOf(row);
  for (let next = index; next + 1 < inputs.length; next++) inputs[next].value = inputs[next + 1].value; // letters stay in order
  byId("instructions").lastElementChild.remove();
  updateInstructions();
  instructionInputs().at(-1).focus();
}

function updateInstructions() {
  byId("add-instruction").hidden = instructionInputs().length >= LETTERS.length;
}

// Searching --------------------------------------------------------------------------------------------------------

async function search(event) {
  event.preventDefault();
  state.running?.abort(); // the server ends the work of a client that hangs up
  const running = (state.running = new AbortController());
  const body = {
    question: byId("question").value,
    collection: collection(),
    limit: Number(byId("limit").value),
    steps: Number(byId("steps").value),
    mode: byId("mode").value || null,
  };
  byId("status").textContent = "Searching …";
  byId("ask").setAttribute("aria-busy", "true");
  try {
    const requests = instructionInputs().map((input) =>
      ask("v1/playground/search", { ...body, instruction: input.value }, running.signal),
    );
    const searches = await Promise.all(requests);
    if (byId("notice").classList.contains("error")) clearNotice();
    const total = searches.reduce((sum, each) => sum + each.seconds.embed + each.seconds.rank, 0);
    byId("status").textContent = `${searches.length} × ${body.steps} rankings in ${seconds(total)}`;
    showSearches(searches);
  } catch (error) {
    if (error.name === "AbortError") return;
    running.abort(); // the other instructions' requests
    byId("status").textContent = "";
    showNotice(error.message, "error");
  } finally {
    if (state.running === running) byId("ask").removeAttribute("aria-busy");
  }
}

function showSearches(searches) {
  state.searches = searches;
  const steps = searches[0].steps.length;
  state.step = Math.min(state.settings.document_steps, steps);
  Object.assign(byId("step"), { max: steps });
  byId("step").value = state.step;
  updateSlider();
  showStep();
  showTokens(searches);
}

function showStep() {
  const { searches, step } = state;
  byId("step-value").textContent = `K = ${step}`;
  byId("step").setAttribute("aria-valuetext", `${step} of ${searches[0].steps.length} steps`);
  const embed = Math.max(...searches.map((each) => each.seconds.embed));
  const rank = Math.max(...searches.map((each) => each.seconds.rank));
  const count = searches[0].steps.length;
  byId("times").textContent = `K = 1 to ${count} in one pass of ${seconds(embed)}; ${seconds(rank / count)} per ranking`;
  showRankings(searches, step);
  showSettling(searches, step);
  showMap(searches, step);
  const found = searches.some((each) => each.steps[step - 1].length);
  byId("rankings-empty").hidden = found;
  byId("columns").hidden = byId("settling").hidden = !found;
  if (!found) {
    const size = state.collections.find((each) => each.name === searches[0].collection)?.points;
    byId("rankings-empty").textContent = size === 0 ? "The collection is empty." : "No passage was found.";
  }
}

function setStep(step) {
  state.step = Math.max(1, Math.min(step, state.searches[0].steps.length));
  byId("step").value = state.step;
  showStep();
}

// Tabs (arrow keys move between them, as in the ARIA practices) ----------------------------------------------------

const tabs = () => [...document.querySelectorAll('[role="tab"]')];

function select(name, focus = false) {
  for (const tab of tabs()) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !selected;
    if (selected && focus) tab.focus();
  }
  byId("ask").hidden = name === "compare";
  updateSlider();
  if (name === "map") openMap();
}

function updateSlider() {
  const needed = ["rankings", "map"].some((name) => byId(`tab-${name}`).getAttribute("aria-selected") === "true");
  byId("slider").hidden = !needed || !state.searches.length;
}

function moveTab(event) {
  const all = tabs();
  const here = all.indexOf(event.target);
  const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined || here < 0) return;
  event.preventDefault();
  select(all[(next + all.length) % all.length].id.slice(4), true);
}

// Notices ----------------------------------------------------------------------------------------------------------

function showNotice(message, kind = "", ...more) {
  const notice = byId("notice");
  notice.className = `notice ${kind}`;
  notice.setAttribute("role", kind === "error" ? "alert" : "status");
  notice.replaceChildren(make("p", {}, message[0].toUpperCase() + message.slice(1)), ...more);
  notice.hidden = false;
}

function clearNotice() {
  byId("notice").hidden = true;
}

// Start ------------------------------------------------------------------------------------------------------------

async function start() {
  const first = !state.settings;
  try {
    state.settings = await ask("v1/playground/settings");
    const listed = await ask("v1/collections");
    state.collections = listed.collections;
    showCollections(listed);
  } catch (error) {
    showNotice(error.message, "error", make("button", { type: "button", onclick: start }, "Try again"));
    return;
  }
  if (byId("tab-map").getAttribute("aria-selected") === "true" && collection()) setUpMap(collection(), true);
  if (!first) return; // keep what the user has entered
  const { model, fingerprint, instruction, max_steps, max_hits } = state.settings;
  byId("served").textContent = model;
  byId("served").title = `Vector space ${fingerprint}`;
  byId("steps").max = max_steps;
  byId("steps").value = Math.min(10, max_steps);
  byId("limit").max = max_hits;
  addInstruction(instruction);
  byId("ask").inert = false;
  byId("wordings").value = instruction;
}

function showCollections(listed) {
  const options = listed.collections.map((each) =>
    make("option", { value: each.name, disabled: !each.compatible }, `${each.name} (${each.compatible ? each.points : "another model"})`),
  );
  byId("collection").replaceChildren(...options);
  const usable = listed.collections.filter((each) => each.compatible).map((each) => each.name);
  byId("collection").value = usable.includes(listed.default) ? listed.default : (usable[0] ?? "");
  const chosen = listed.collections.find((each) => each.name === collection());
  byId("ask").querySelector("button.primary").disabled = !chosen;
  clearNotice();
  if (chosen?.points) return;
  const wanted = chosen?.name ?? listed.default;
  const text = chosen ? `The collection ${wanted} is empty.` : `There is no collection ${wanted} yet.`;
  const hint = `curl -s ${location.origin}/v1/collections/${encodeURIComponent(wanted)}/documents \\
  -H 'Content-Type: application/json' \\
  -d '{"documents": [{"id": "cats", "text": "A cat purrs."}]}'`;
  const reload = make("button", { type: "button", onclick: start }, "Look again");
  showNotice(text, "", make("p", {}, "Stop the server and run gircse ingest, or send documents to it:"), make("pre", { tabindex: 0 }, hint), reload);
}

function openMap() {
  if (collection()) setUpMap(collection());
}

byId("ask").addEventListener("submit", search);
byId("add-instruction").addEventListener("click", () => addInstruction().focus());
byId("step").addEventListener("input", (event) => setStep(Number(event.target.value)));
byId("collection").addEventListener("change", () => {
  if (byId("tab-map").getAttribute("aria-selected") === "true") openMap();
});
byId("reload-map").addEventListener("click", () => setUpMap(collection(), true));
for (const tab of tabs()) tab.addEventListener("click", () => select(tab.id.slice(4)));
document.querySelector('[role="tablist"]').addEventListener("keydown", moveTab);
setUpSettling(() => showSettling(state.searches, state.step), setStep);
setUpCompare(collection);
start();
