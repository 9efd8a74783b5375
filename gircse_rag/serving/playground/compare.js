// Compare instructions on questions with known answers.

import { ask } from "./api.js";
import { byId, make } from "./dom.js";

const METRICS = [
  ["ndcg@10", "nDCG@10"],
  ["mrr@10", "MRR@10"],
  ["hit@1", "hit@1"],
];
const BARE = "none: the bare question";

/** `collection()` gives the name of the chosen collection. */
export function setUpCompare(collection) {
  byId("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    compare(collection());
  });
  byId("copy").addEventListener("click", copy);
}

async function compare(collection) {
  const button = byId("compare").querySelector("button");
  const status = byId("compare-status");
  status.className = "quiet";
  try {
    const body = { collection, pairs: readPairs(byId("pairs").value), instructions: lines(byId("wordings").value) };
    button.disabled = true;
    status.textContent = "Searching with every instruction …";
    showScores(await ask("v1/playground/compare", body), collection);
    status.textContent = "";
  } catch (error) {
    status.className = "error";
    status.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** "question | document id" per line; the last bar counts, because a question may have one. */
function readPairs(text) {
  return lines(text).map((line, index) => {
    const bar = line.lastIndexOf("|");
    const [question, document] = [line.slice(0, bar).trim(), line.slice(bar + 1).trim()];
    if (bar < 0 || !question || !document) throw new Error(`line ${index + 1} is not "question | document id": ${line}`);
    return { question, document };
  });
}

function showScores(result, collection) {
  const number = (value) => (100 * value).toFixed(1);
  const withInterval = ({ value, low, high }) => [number(value), make("small", {}, ` ${number(low)} to ${number(high)}`)];
  const signed = (value) => (value < 0 ? "−" : "+") + number(Math.abs(value));
  const scores = result.instructions.map((row) => row["ndcg@10"].value);
  const top = Math.max(...scores);
  const tied = scores.filter((score) => score === top).length > 1; // then none is best
  const rows = result.instructions.map((row) => {
    const best = !tied && row.instruction === result.best;
    const lead = row.instruction === null
      ? ["–"]
      : [signed(row.lead.value), make("small", {}, ` ${signed(row.lead.low)} to ${signed(row.lead.high)}`)];
    return make(
      "tr",
      { class: best ? "best" : null },
      make("th", { scope: "row" }, row.instruction ?? BARE, best ? make("b", { class: "badge" }, "best") : ""),
      ...METRICS.map(([name]) => make("td", {}, ...withInterval(row[name]))),
      make("td", {}, ...lead),
    );
  });
  const heads = ["instruction", ...METRICS.map(([, title]) => title), "lead in nDCG@10"];
  byId("scores").replaceChildren(
    make("caption", {}, `${result.questions} ${result.questions === 1 ? "question" : "questions"}, × 100, with 95% intervals`),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows),
  );
  byId("unfound").hidden = top > 0;
  byId("skipped").textContent = result.skipped.length ? `Skipped: ${result.skipped.join("; ")}` : "";
  byId("code").textContent = writeCode(result, collection);
  byId("copied").textContent = "";
  byId("compare-result").hidden = false;
}

function writeCode(result, collection) {
  const best = result.instructions.filter((row) => row.instruction !== null).sort((a, b) => b["ndcg@10"].value - a["ndcg@10"].value)[0];
  return `from gircse_rag.qdrant import search

hits = search(
    question,
    collection=${python(collection)},
    embedder=embedder,
    client=client,
    instruction=${python(best.instruction)},
)`;
}

/** A Python string literal: JSON's escapes are Python's too, if all other characters are ASCII or printable. */
const python = (text) => JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

async function copy() {
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("code")); // no clipboard on plain http
    byId("copied").textContent = "Press Ctrl+C to copy the selected lines.";
  }
}
