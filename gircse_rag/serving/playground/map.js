// The map: points of the collection on their principal plane, and the path z_1..z_K of each question.

import { ask } from "./api.js";
import { LETTERS, byId, colour, instructionColour, make, redrawOnChange } from "./dom.js";

const PALETTE = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8", "--c9", "--c10"];
const NEAR = 12; // CSS pixels from the pointer to a point
let map = null; // the server's answer, and `rows`: id -> index
let chart = null;
let loading = null;
let found = { searches: [], step: 1, paths: [] };
let chosen = -1; // index of the point that is described

/** Load the map of a collection unless it is shown already. */
export async function setUpMap(name, fresh = false) {
  if (map?.collection === name && !fresh) return draw();
  loading?.abort();
  const running = (loading = new AbortController());
  byId("map-status").textContent = "Reading the collection …";
  try {
    const answer = await ask("v1/playground/map", { collection: name, fresh }, running.signal);
    map = { ...answer, rows: new Map(answer.points.map((point, index) => [point.id, index])) };
  } catch (error) {
    if (error.name !== "AbortError") byId("map-status").textContent = error.message;
    return;
  }
  const { points, total, explained } = map;
  const share = Math.round(100 * (explained[0] + explained[1]));
  const part = points.length < total ? `${points.length} of ${total} passages` : `${total} passages`;
  byId("map-status").textContent = total ? `${part}; the plane shows ${share}% of the variance` : "The collection is empty.";
  const before = byId("colour").value;
  const names = map.fields.map((field) => field.name);
  byId("colour").replaceChildren(make("option", { value: "" }, "none"), ...names.map((each) => make("option", { value: each }, each)));
  byId("colour").value = names.includes(before) ? before : (names.find((each) => each !== "source") ?? "");
  describe(-1);
  draw();
}

export function showMap(searches, step) {
  const same = searches === found.searches;
  found = { searches, step, paths: same ? found.paths : [] };
  if (!same) describe(-1);
  draw();
}

/** Coordinates of z_1..z_K: components @ (z - mean). */
function project(search) {
  const bytes = Uint8Array.from(atob(search.vectors), (character) => character.charCodeAt(0));
  const values = new DataView(bytes.buffer);
  const dimension = map.mean.length;
  return search.steps.map((_, k) =>
    map.components.map((component) =>
      component.reduce((sum, weight, i) => sum + weight * (values.getFloat32(4 * (k * dimension + i), true) - map.mean[i]), 0),
    ),
  );
}

function draw() {
  const frame = byId("map-chart");
  if (!map || !frame.clientWidth) return;
  found.paths = found.searches.filter((search) => search.collection === map.collection).map(project);
  const path = found.paths.flat();
  byId("zoom").disabled = !path.length;
  const zoomed = path.length > 0 && byId("zoom").getAttribute("aria-pressed") === "true";
  const all = zoomed ? path : [...map.coordinates, ...path];
  chart?.destroy();
  chart = null;
  showLegend();
  if (!all.length) return;
  const range = (axis) => {
    const values = all.map((point) => point[axis]);
    const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const margin = (zoomed ? 0.4 : 0.05) * (high - low) || 0.1;
    return [low - margin, high + margin];
  };
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = (number) => ({
    stroke: colour("--quiet"),
    font,
    labelFont: font,
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    size: number ? 44 : 30,
    labelSize: 20,
    label: `direction ${number + 1} (${Math.round(100 * map.explained[number])}% of the variance)`,
  });
  chart = new uPlot(
    {
      width: frame.clientWidth,
      height: Math.max(300, Math.min(560, Math.round(0.62 * frame.clientWidth))),
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: range(0) }, y: { range: range(1) } },
      axes: [axis(0), axis(1)],
      series: [{}, { show: false }],
      hooks: { draw: [drawPoints, drawPaths] },
    },
    [[0, 1], [null, null]],
    frame,
  );
}

const field = () => map.fields.find((each) => each.name === byId("colour").value);
const place = (plot, [x, y]) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];

function circle(ctx, [x, y], radius) {
  ctx.beginPath();
  ctx.arc(x, y, radius * devicePixelRatio, 0, 2 * Math.PI);
}

function drawPoints(plot) {
  const { ctx, bbox } = plot;
  const codes = field()?.codes;
  const colours = PALETTE.map(colour);
  const plain = colour(codes ? "--quiet" : "--c1");
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip(); // zoomed, most points are outside
  map.coordinates.forEach((point, index) => {
    ctx.globalAlpha = 0.65;
    ctx.fillStyle = codes?.[index] >= 0 ? colours[codes[index]] : plain;
    circle(ctx, place(plot, point), map.points.length > 1000 ? 2.5 : 4);
    ctx.fill();
  });
  ctx.globalAlpha = 1;
  ctx.strokeStyle = colour("--text");
  ctx.lineWidth = 1.5 * devicePixelRatio;
  for (const index of foundRows()) {
    circle(ctx, place(plot, map.coordinates[index]), 6);
    ctx.stroke();
  }
  if (chosen >= 0) {
    ctx.lineWidth = 3 * devicePixelRatio;
    circle(ctx, place(plot, map.coordinates[chosen]), 8);
    ctx.stroke();
  }
  ctx.restore();
}

/** Rows of the passages that instruction A finds at this step, best first. */
function foundRows() {
  const hits = found.searches[0]?.steps[found.step - 1] ?? [];
  return hits.map((hit) => map.rows.get(hit.id)).filter((index) => index !== undefined);
}

function drawPaths(plot) {
  const { ctx } = plot;
  ctx.save();
  found.paths.forEach((path, index) => {
    const places = path.map((point) => place(plot, point));
    ctx.beginPath();
    places.forEach(([x, y]) => ctx.lineTo(x, y));
    for (const [name, width] of [["--card", 6], [instructionColour(index), 2.5]]) { // with a halo, above the points
      ctx.strokeStyle = colour(name);
      ctx.lineWidth = width * devicePixelRatio;
      ctx.stroke();
    }
    ctx.fillStyle = colour(instructionColour(index));
    places.forEach((each, k) => {
      circle(ctx, each, k + 1 === found.step ? 6 : 2.5);
      ctx.fill();
    });
    ctx.textAlign = "left";
    ctx.font = `bold ${14 * devicePixelRatio}px sans-serif`;
    const [x, y] = places[found.step - 1];
    ctx.fillText(LETTERS[index], x + 9 * devicePixelRatio, y - 7 * devicePixelRatio);
  });
  ctx.restore();
}

function showLegend() {
  const entry = (name, text) => {
    const mark = make("i", { "aria-hidden": "true" });
    mark.style.setProperty("background", `var(${name})`);
    return make("li", {}, mark, text);
  };
  const of = field();
  const values = of?.values.map((value, code) => entry(PALETTE[code], value)) ?? [];
  if (of?.codes.includes(-1)) values.push(entry("--quiet", "other"));
  const paths = found.paths.map((_, index) => entry(instructionColour(index), `path of ${LETTERS[index]}, z1 to z${found.paths[index].length}`));
  if (paths.length) values.unshift(make("li", {}, make("i", { class: "ring", "aria-hidden": "true" }), "found under A"));
  byId("map-legend").replaceChildren(...paths, ...values);
}

function describe(index) {
  chosen = index;
  const point = map?.points[index];
  byId("map-point").textContent = point ? `${point.document ?? point.id}: ${point.text}` : "Point at a passage to read it.";
}

function pointAt(event) {
  if (!chart) return;
  const box = chart.over.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let [best, nearest] = [NEAR ** 2, -1];
  map.coordinates.forEach(([a, b], index) => {
    const distance = (chart.valToPos(a, "x") - x) ** 2 + (chart.valToPos(b, "y") - y) ** 2;
    if (distance < best) [best, nearest] = [distance, index];
  });
  if (nearest >= 0 && nearest !== chosen) {
    describe(nearest);
    chart.redraw(false);
  }
}

function stepThrough(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by || !chart) return;
  event.preventDefault();
  const rows = foundRows().length ? foundRows() : map.points.map((_, index) => index);
  const here = rows.indexOf(chosen);
  describe(rows[here < 0 ? (by > 0 ? 0 : rows.length - 1) : (here + by + rows.length) % rows.length]);
  chart.redraw(false);
}

byId("map-chart").addEventListener("pointermove", pointAt);
byId("map-chart").addEventListener("pointerdown", pointAt);
byId("map-chart").addEventListener("keydown", stepThrough);
byId("colour").addEventListener("change", draw);
byId("zoom").addEventListener("click", () => {
  byId("zoom").setAttribute("aria-pressed", byId("zoom").getAttribute("aria-pressed") !== "true");
  draw();
});
redrawOnChange(byId("map-chart"), draw);
