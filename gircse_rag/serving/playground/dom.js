// Builds elements. Text goes in as text nodes, never as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string child becomes text. Event handlers: {onclick: f}. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** The value of a CSS variable, for canvases. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const LETTERS = ["A", "B", "C"];
export const instructionColour = (index) => `--${LETTERS[index].toLowerCase()}`;

export const seconds = (value) =>
  value < 0.0095 ? `${(1000 * value).toFixed(1)} ms` : value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;

/** Calls `draw` when the element's width or the colour scheme changes. */
export function redrawOnChange(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth !== width) {
      width = element.clientWidth;
      draw();
    }
  }).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
