// How the ranking settles: the place of each passage after every step, for one instruction.

import { LETTERS, byId, colour, make, redrawOnChange } from "./dom.js";

const PALETTE = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
let chart = null;
let drawn = null; // the search in the chart
let now = { searches: [], step: 1 };

/** Prepare the chart. `redraw` shows it again, `chooseStep(k)` moves the slider. */
export function setUpSettling(redraw, chooseStep) {
  byId("settling-of").addEventListener("change", redraw);
  byId("settling-chart").addEventListener("click", (event) => {
    if (chart) chooseStep(Math.round(chart.posToVal(event.clientX - chart.over.getBoundingClientRect().left, "x")));
  });
  redrawOnChange(byId("settling-chart"), () => {
    drawn = null;
    if (now.searches.length) redraw();
  });
}

export function showSettling(searches, step) {
  if (searches !== now.searches) {
    const options = searches.map((each, index) => make("option", { value: index }, `${LETTERS[index]}: ${each.instruction}`));
    byId("settling-of").replaceChildren(...options);
    drawn = null;
  }
  now = { searches, step };
  const search = searches[Number(byId("settling-of").value)];
  byId("settling-text").textContent = describe(search);
  if (drawn === search) chart.redraw(false);
  else draw(search);
}

/** From which step on the first place, and the whole ranking, stay as they end. */
function describe(search) {
  const orders = search.steps.map((hits) => hits.map((hit) => hit.id));
  const last = orders.at(-1);
  if (!last.length) return "";
  const since = (same) => orders.length - [...orders].reverse().findIndex((order) => !same(order)) + 1;
  const text = (what, same) => {
    const from = orders.every(same) ? 1 : since(same);
    return from === orders.length && from > 1 ? `${what} still changes at the last step.` : `${what} is the same from K = ${from} on.`;
  };
  return [
    text("The first passage", (order) => order[0] === last[0]),
    text(`The order of all ${last.length}`, (order) => order.join() === last.join()),
  ].join(" ");
}

function draw(search) {
  const frame = byId("settling-chart");
  chart?.destroy();
  chart = null;
  if (!frame.clientWidth || !search.steps.at(-1).length) return; // hidden: drawn when it gets a width
  const ids = search.steps.at(-1).map((hit) => hit.id);
  const places = ids.map((id) => search.steps.map((hits) => hits.findIndex((hit) => hit.id === id) + 1 || null));
  const steps = search.steps.map((_, index) => index + 1);
  const wide = frame.clientWidth > 600;
  const [text, grid] = [colour("--text"), colour("--line")];
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: text, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
  chart = new uPlot(
    {
      width: frame.clientWidth,
      height: 64 + 24 * ids.length,
      padding: [12, wide ? 220 : 12, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [0.9, steps.length + 0.1] }, y: { dir: -1, range: [0.5, ids.length + 0.5] } },
      axes: [
        { ...axis, label: "refinement steps K", labelFont: font, size: 28, labelSize: 20, incrs: [1, 2, 5, 10], space: 28 },
        { ...axis, label: "place", labelFont: font, size: 32, labelSize: 20, incrs: [1], space: 12 },
      ],
      series: [
        {},
        ...ids.map((_, index) => {
          const stroke = colour(PALETTE[index % PALETTE.length]);
          return { stroke, width: 2, points: { show: true, size: 6, fill: stroke, stroke } };
        }),
      ],
      hooks: { draw: [(plot) => drawStep(plot), (plot) => wide && drawNames(plot, search, ids, text, font)] },
    },
    [steps, ...places],
    frame,
  );
  drawn = search;
}

function drawStep(plot) {
  const { ctx, bbox } = plot;
  const x = plot.valToPos(now.step, "x", true);
  ctx.save();
  ctx.strokeStyle = colour("--quiet");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

function drawNames(plot, search, ids, text, font) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = text;
  ctx.font = font.replace("12px", `${12 * devicePixelRatio}px`);
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ids.forEach((id, index) => {
    const name = search.passages[id].document ?? id;
    const short = name.length > 32 ? `…${name.slice(-31)}` : name;
    ctx.fillText(short, bbox.left + bbox.width + 8 * devicePixelRatio, plot.valToPos(index + 1, "y", true));
  });
  ctx.restore();
}
