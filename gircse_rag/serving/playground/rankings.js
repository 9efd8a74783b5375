// The rankings at one step: a column per instruction, and lines between the places of the same passage.

import { LETTERS, byId, make, makeSvg, redrawOnChange } from "./dom.js";

const cards = new Map(); // "column passage" -> card, kept so that a card can glide to its new place
let shown = { searches: null, step: 0 };

export function showRankings(searches, step) {
  const columns = byId("columns");
  if (shown.searches !== searches) {
    cards.clear();
    columns.replaceChildren(makeSvg("svg", { id: "lines", "aria-hidden": "true" }), ...searches.map(makeColumn));
    columns.className = `columns-${searches.length}`;
  }
  const before = new Map([...cards].map(([name, card]) => [name, card.getBoundingClientRect().top]));
  const places = searches.map((each) => new Map(each.steps[step - 1].map((hit, index) => [hit.id, index + 1])));
  searches.forEach((search, column) => {
    const list = byId(`hits-${column}`);
    const best = Math.max(...search.steps[step - 1].map((hit) => hit.score), 1e-9);
    const items = search.steps[step - 1].map((hit, index) => {
      const card = cardOf(search, column, hit.id);
      updateCard(card, hit, index + 1, best, column ? places[0].get(hit.id) : undefined, column);
      return card;
    });
    list.replaceChildren(...items);
  });
  shown = { searches, step };
  drawLines();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) glide(before);
}

function makeColumn(search, column) {
  return make(
    "div",
    { class: `column of-${column}` },
    make("h2", { title: search.instruction }, make("b", {}, LETTERS[column]), ` ${search.instruction}`),
    make("ol", { id: `hits-${column}`, "aria-label": `Passages under instruction ${LETTERS[column]}` }),
  );
}

function cardOf(search, column, id) {
  const name = `${column} ${id}`;
  if (!cards.has(name)) {
    const passage = search.passages[id];
    const open = () => showPassage(passage);
    const mark = (event) => markPassage(id, event.type === "mouseenter" || event.type === "focus");
    const button = make(
      "button",
      { type: "button", class: "hit", onclick: open, onmouseenter: mark, onmouseleave: mark, onfocus: mark, onblur: mark },
      make("span", { class: "place" }),
      make("span", { class: "source" }, passage.document ?? "(no document)"),
      make("span", { class: "moved" }),
      make("span", { class: "score" }),
      make("span", { class: "excerpt" }, passage.text.slice(0, 300)),
      make("span", { class: "bar", "aria-hidden": "true" }),
    );
    cards.set(name, Object.assign(make("li", { "data-passage": id }, button), { button }));
  }
  return cards.get(name);
}

function updateCard(card, hit, place, best, first, column) {
  const part = (name) => card.querySelector(`.${name}`);
  part("place").textContent = place;
  part("score").textContent = hit.score.toFixed(3);
  part("bar").style.setProperty("--share", Math.max(0, hit.score / best));
  const moved = part("moved");
  const by = first === undefined ? null : first - place;
  moved.textContent = column === 0 ? "" : by === null ? "new" : by === 0 ? "=" : `${by > 0 ? "▲" : "▼"}${Math.abs(by)}`;
  moved.className = `moved ${by > 0 ? "up" : by < 0 ? "down" : ""}`;
  moved.title = column === 0 ? "" : by === null ? "not among the passages of A" : `place ${first} under A`;
}

/** Let the cards glide from where they were. */
function glide(before) {
  for (const [name, card] of cards) {
    if (!card.isConnected || !before.get(name)) continue;
    const distance = before.get(name) - card.getBoundingClientRect().top;
    if (distance) card.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: 220, easing: "ease-out" });
  }
}

/** Connect the places of each passage in neighbouring columns. The style sheet hides them where columns are stacked. */
function drawLines() {
  const svg = byId("lines");
  if (!svg) return;
  const frame = byId("columns").getBoundingClientRect();
  svg.replaceChildren();
  shown.searches.slice(1).forEach((search, index) => {
    for (const hit of search.steps[shown.step - 1]) {
      const left = cards.get(`${index} ${hit.id}`);
      const right = cards.get(`${index + 1} ${hit.id}`);
      if (!left?.isConnected || !right?.isConnected) continue;
      const [from, to] = [left.getBoundingClientRect(), right.getBoundingClientRect()];
      const [x1, x2] = [from.right - frame.left, to.left - frame.left];
      const [y1, y2] = [from, to].map((box) => box.top - frame.top + box.height / 2);
      const middle = (x1 + x2) / 2;
      const path = makeSvg("path", { d: `M${x1},${y1}C${middle},${y1} ${middle},${y2} ${x2},${y2}`, "data-passage": hit.id });
      path.classList.add(y1 === y2 ? "same" : y2 < y1 ? "up" : "down");
      svg.append(path);
    }
  });
}

function markPassage(id, marked) {
  for (const element of byId("columns").querySelectorAll("[data-passage]")) {
    if (element.dataset.passage === id) element.classList.toggle("marked", marked);
  }
}

/** The whole passage in a dialog. */
export function showPassage(passage) {
  byId("passage-title").textContent = passage.document ?? "Passage";
  byId("passage-text").textContent = passage.text;
  const entries = Object.entries(passage.metadata ?? {}).filter(([name]) => name !== "_chunk");
  const rows = entries.flatMap(([name, value]) => [
    make("dt", {}, name),
    make("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
  ]);
  byId("passage-metadata").replaceChildren(...rows);
  byId("passage").showModal();
  byId("passage").scrollTop = 0;
}

redrawOnChange(byId("columns"), () => shown.searches && drawLines());
