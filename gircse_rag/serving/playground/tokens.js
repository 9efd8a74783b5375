// The soft tokens: per instruction, a heat map of the most probable words of each step.

import { LETTERS, byId, make } from "./dom.js";

export function showTokens(searches) {
  byId("tokens-empty").hidden = true;
  byId("tokens").replaceChildren(...searches.map(makeHeatMap));
}

function makeHeatMap(search, index) {
  const width = Math.max(...search.soft_tokens.map((step) => step.length), 0);
  const ranks = Array.from({ length: width }, (_, rank) => make("th", { scope: "col" }, `${rank + 1}.`));
  const rows = search.soft_tokens.map((step, k) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, `step ${k + 1}`),
      ...step.map(([token, weight]) => {
        const cell = make("td", {}, make("span", { class: "word" }, readable(token)), make("small", {}, percent(weight)));
        cell.style.setProperty("--weight", weight);
        return cell;
      }),
    ),
  );
  const table = make("table", { class: "heat" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), ...ranks)), make("tbody", {}, ...rows));
  return make(
    "section",
    { class: `of-${index}` },
    make("h2", {}, make("b", {}, LETTERS[index]), ` ${search.instruction}`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Soft tokens under instruction ${LETTERS[index]}` }, table),
  );
}

/** Show white space: a token's leading space tells words from parts of words. */
const readable = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";

const percent = (weight) => (weight < 0.001 ? "<0.1%" : `${(100 * weight).toFixed(weight < 0.1 ? 1 : 0)}%`);
