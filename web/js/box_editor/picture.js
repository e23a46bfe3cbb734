/**
 * Draws a layout as SVG elements on a stage of a given size in pixels.
 *
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {import("./geometry.js").Handle} Handle
 * @typedef {import("./layout.js").Person} Person
 * @typedef {{width: number, height: number}} Stage
 */

import { HANDLES, clamp, handlePoint } from "./geometry.js";

const SVG = "http://www.w3.org/2000/svg";
// Those of drawing.py, so that a person has one colour here and in the pictures of other nodes; distinct for the
// colour-blind (Okabe and Ito), in shades for dark and light pictures.
const COLOURS = ["#e69f00", "#56b4e9", "#2bb389", "#d5c728", "#8f9bff", "#e0703a", "#cc79a7", "#a6a6a6"];
const HANDLE_SIZE = 8;
const LABEL_HEIGHT = 16;
const FONT = "11px sans-serif";

/**
 * An SVG element.
 *
 * @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text]
 */
export function svgElement(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

const measure = document.createElement("canvas").getContext("2d");

/** Width in pixels of a label's text. @param {string} text */
function textWidth(text) {
  if (!measure) return text.length * 6;
  measure.font = FONT;
  return measure.measureText(text).width;
}

/** Lines that divide the picture into thirds. @param {Stage} stage */
export function drawThirds({ width, height }) {
  return [1, 2].flatMap((third) => [
    svgElement("path", { class: "dynamicid-thirds", d: `M${(width * third) / 3} 0V${height}` }),
    svgElement("path", { class: "dynamicid-thirds", d: `M0 ${(height * third) / 3}H${width}` }),
  ]);
}

/**
 * A person's box with label, numbers, and handles where it can be changed.
 *
 * @param {Person} person @param {Stage} stage
 * @param {{active: boolean, editable: boolean}} state active: of this node, or under the mouse
 */
export function drawPerson(person, stage, { active, editable }) {
  const { box, own, node, number, name } = person;
  const [x, y] = [box.x * stage.width, box.y * stage.height];
  const [width, height] = [Math.max(box.width, 0) * stage.width, Math.max(box.height, 0) * stage.height];
  const group = svgElement("g", {
    class: "dynamicid-person",
    "data-node": node.id,
    "data-own": own,
    "data-active": active,
    "data-editable": editable,
    "data-replaced": person.replacedBy !== null,
    style: `--dynamicid-colour: ${COLOURS[(number - 1) % COLOURS.length]}`,
  });
  group.append(
    svgElement("rect", { class: "dynamicid-casing", x, y, width, height }),
    svgElement("rect", { class: "dynamicid-box", x, y, width, height }),
    ...drawLabel(`${number}${name ? ` ${name}` : ""}`, x, y, width, stage),
  );
  if (height > 4 * LABEL_HEIGHT) group.append(...drawNumbers(box, x, y, width, height));
  if (active && editable) {
    for (const handle of HANDLES) group.append(drawHandle(box, handle, stage));
  }
  return group;
}

/**
 * @param {string} text @param {number} x @param {number} y @param {number} width
 * @param {Stage} stage
 */
function drawLabel(text, x, y, width, stage) {
  const room = Math.max(width, 22) - 8;
  let shown = text;
  while (shown.length > 2 && textWidth(shown) > room) shown = `${shown.slice(0, -2)}…`;
  const size = textWidth(shown) + 10;
  const left = clamp(x, 0, stage.width - size);
  const top = clamp(y, 0, stage.height - LABEL_HEIGHT);
  return [
    svgElement("rect", { class: "dynamicid-label", x: left, y: top, width: size, height: LABEL_HEIGHT }),
    svgElement("text", { class: "dynamicid-label-text", x: left + 5, y: top + LABEL_HEIGHT - 4.5 }, shown),
  ];
}

/** @param {Box} box @param {number} x @param {number} y @param {number} width @param {number} height */
function drawNumbers(box, x, y, width, height) {
  const [left, top, wide, high] = [box.x, box.y, box.width, box.height].map((part) => part.toFixed(2));
  const lines = [`${left}, ${top}`, `${wide} × ${high}`];
  if (Math.max(...lines.map(textWidth)) > width - 12) return [];
  const middle = { x: x + width / 2, y: y + height / 2 };
  return lines.map((line, index) =>
    svgElement("text", { class: "dynamicid-numbers", x: middle.x, y: middle.y + 15 * index - 2 }, line),
  );
}

/** @param {Box} box @param {Handle} handle @param {Stage} stage */
function drawHandle(box, handle, stage) {
  const { x, y } = handlePoint(box, handle);
  const half = HANDLE_SIZE / 2;
  // Entirely inside the picture, so that none is cut off at its edge.
  const left = clamp(x * stage.width - half, 0, stage.width - HANDLE_SIZE);
  const top = clamp(y * stage.height - half, 0, stage.height - HANDLE_SIZE);
  return svgElement("rect", {
    class: "dynamicid-handle",
    "data-handle": handle,
    x: left,
    y: top,
    width: HANDLE_SIZE,
    height: HANDLE_SIZE,
    rx: 2,
  });
}
