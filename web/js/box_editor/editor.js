/**
 * The picture of a layout on one Place Face node: shows every box, and lets mouse, finger, pen and keyboard change them.
 * The numbers of the nodes are the only state; the picture follows them, whatever changes them.
 * ComfyUI imports every script below `web` by itself; importing this one does nothing.
 *
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {import("./geometry.js").Handle} Handle
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./layout.js").Person} Person
 * @typedef {object} Host What the editor needs from ComfyUI.
 * @property {() => void} changed called after each complete change, for undo
 * @property {(event: Event) => void} forward forward an event to the graph, which would have got it without the editor
 * @property {() => string | undefined} locale
 */

import { clamp, drawBox, fitInside, isEmpty, isInside, itemAt, moveBox, resizeBox } from "./geometry.js";
import { readPeople, readPictureSize, writeBox } from "./layout.js";
import { drawPerson, drawThirds, svgElement } from "./picture.js";
import { textsFor } from "./texts.js";

const REACH = { mouse: 7, touch: 18, pen: 12 };
// A press that moves less, in screen pixels, draws nothing: a click beside the box must not destroy it.
const DRAW_FROM = 4;
const CURSORS = { n: "ns", s: "ns", e: "ew", w: "ew", nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw" };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FOOTER_HEIGHT = 20;

/** @param {string} name @param {HTMLElement} parent */
function addPart(name, parent) {
  const part = document.createElement("div");
  part.className = `dynamicid-${name}`;
  parent.append(part);
  return part;
}

export class BoxEditor {
  /** @type {{kind: "move" | "resize" | "draw", pointer: number, person: Person, handle: Handle | null, from: Point,
   *   screen: Point, begun: boolean} | null} */
  #drag = null;
  /** @type {object | null} the node whose box the mouse is over */
  #hovered = null;
  #shown = "";
  #unsaved = false;
  /** @type {Person[]} */
  #people = [];
  #observer = new ResizeObserver(() => this.update(true));
  /** A second finger anywhere zooms the graph: the first one then was not dragging. */
  #interrupt = (/** @type {PointerEvent} */ event) => {
    if (!event.isPrimary) this.#cancel();
  };
  static #count = 0;
  /** @type {WeakMap<Element, BoxEditor>} */
  static #editors = new WeakMap();

  /** @param {object} node @param {Host} host */
  constructor(node, host) {
    this.node = node;
    this.host = host;
    this.texts = textsFor(host.locale());
    this.element = document.createElement("div");
    // The second class: fills the spare height of the node, where nodes are DOM elements.
    this.element.className = "dynamicid-box-editor widget-expands";
    BoxEditor.#editors.set(this.element, this);
    this.area = addPart("area", this.element);
    this.stage = /** @type {SVGSVGElement} */ (svgElement("svg", { class: "dynamicid-stage", tabindex: 0 }));
    this.area.append(this.stage);
    this.footer = addPart("footer", this.area);
    this.message = addPart("message", this.footer);
    this.size = addPart("size", this.footer);
    this.keys = addPart("hidden", this.element);
    this.spoken = addPart("hidden", this.element);
    this.#describe();
    this.#listen();
    this.#observer.observe(this.area);
  }

  #describe() {
    const id = `dynamicid-box-editor-${++BoxEditor.#count}`;
    this.keys.id = id;
    this.message.id = `${id}-message`;
    this.keys.textContent = this.texts.keys;
    // A screen reader passes arrow keys to the picture only if it is an application.
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-roledescription", this.texts.role);
    this.spoken.setAttribute("aria-live", "polite");
  }

  #listen() {
    const { stage } = this;
    stage.addEventListener("pointerdown", (event) => this.#press(event));
    stage.addEventListener("pointermove", (event) => this.#point(event));
    stage.addEventListener("pointerup", (event) => this.#release(event));
    stage.addEventListener("pointercancel", () => this.#cancel());
    stage.addEventListener("lostpointercapture", () => this.#finish());
    stage.addEventListener("pointerleave", () => this.#hover(null));
    stage.addEventListener("keydown", (event) => this.#keyDown(event));
    stage.addEventListener("keyup", () => this.#save());
    stage.addEventListener("blur", () => this.#save());
    // Events that the editor does not use go to the graph, also beside the picture: zoom, pan, the node's menu.
    this.element.addEventListener("wheel", (event) => this.host.forward(event), { passive: false });
    this.element.addEventListener("contextmenu", (event) => event.preventDefault());
    for (const type of /** @type {const} */ (["pointerdown", "pointermove", "pointerup"])) {
      this.element.addEventListener(type, (event) => {
        const other = type === "pointermove" ? event.buttons & ~1 : event.button > 0;
        if (other && !this.#drag) this.host.forward(event);
      });
    }
  }

  // --- showing -------------------------------------------------------------------------------------------------------

  get #own() {
    return /** @type {Person} */ (this.#people.find((person) => person.own));
  }

  /** Follow the graph. Called for every frame: cheap where nothing changed. @param {boolean} [resized] */
  update(resized = false) {
    if (!this.node.graph) return;
    if (!this.element.isConnected) this.#takePlace();
    if (!this.element.isConnected) return;
    const people = readPeople(this.node);
    const size = readPictureSize(this.node);
    const seen = people.map(({ node, ...shown }) => ({ ...shown, id: node.id, hovered: node === this.#hovered }));
    const state = JSON.stringify([seen, size]);
    if (state === this.#shown && !resized) return;
    this.#shown = state;
    this.#people = people;
    this.#render(size);
  }

  /** Where nodes are DOM elements, undo recreates them, but the element on the page is still the old node's. */
  #takePlace() {
    const shown = document.querySelector(`[data-node-id="${this.node.id}"] .dynamicid-box-editor`);
    const before = shown && BoxEditor.#editors.get(shown);
    const { graph, id } = before?.node ?? {};
    if (before && graph?.getNodeById(id) !== before.node) shown.replaceWith(this.element);
  }

  /** @param {import("./layout.js").Size | null} size */
  #render(size) {
    // Not getBoundingClientRect: the graph's zoom is a transform and must not count.
    const { clientWidth, clientHeight } = this.area;
    const stage = fitInside(clientWidth, clientHeight - FOOTER_HEIGHT, size ? clamp(size.width / size.height, 0.1, 10) : 1);
    const { style } = this.stage;
    for (const side of /** @type {const} */ (["left", "width", "height"])) style[side] = `${stage[side]}px`;
    this.footer.style.top = `${stage.height}px`;
    this.stage.setAttribute("viewBox", `0 0 ${stage.width} ${stage.height}`);
    const own = this.#own;
    const others = this.#people.filter((person) => person !== own);
    this.stage.replaceChildren(
      ...drawThirds(stage),
      ...[...others, own].map((person) => drawPerson(person, stage, this.#look(person))),
    );
    const percent = [own.box.x, own.box.y, own.box.width, own.box.height].map((part) => `${Math.round(part * 100)} %`);
    this.stage.setAttribute("aria-label", this.texts.box(percent));
    this.size.textContent = size ? `${size.width} × ${size.height}` : "";
    this.#say(own);
  }

  /** @param {Person} person */
  #look(person) {
    return { active: person.own || person.node === this.#hovered, editable: this.#canEdit(person) };
  }

  /** @param {Person} own */
  #say(own) {
    const mistake = this.#mistake(own);
    const notice = own.replacedBy ?? (own.linked ? "linked" : null);
    const locked = !this.#canEdit(own);
    this.message.textContent = this.texts[mistake ?? notice ?? "hint"];
    this.message.title = this.message.textContent;
    this.message.classList.toggle("dynamicid-warning", mistake !== null);
    this.message.classList.toggle("dynamicid-notice", notice !== null);
    this.element.classList.toggle("dynamicid-locked", locked);
    this.stage.setAttribute("aria-disabled", String(locked));
    // For a box that keys cannot change, only the reason.
    this.stage.setAttribute("aria-describedby", locked ? this.message.id : `${this.keys.id} ${this.message.id}`);
  }

  /** The mistake for which the node would be rejected. @param {Person} own */
  #mistake(own) {
    if (own.replacedBy) return own.replacedBy === "both" ? "both" : null;
    if (isEmpty(own.box)) return "empty";
    return isInside(own.box) ? null : "outside";
  }

  // --- mouse, finger, pen --------------------------------------------------------------------------------------------

  /** A box that has no effect cannot be drawn. @param {Person} person */
  #canEdit(person) {
    return !person.linked && !person.replacedBy;
  }

  /** The position of an event, in fractions of the picture. @param {PointerEvent} event @returns {Point} */
  #locate(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return { x: (event.clientX - left) / width, y: (event.clientY - top) / height };
  }

  /** The box and handle that a press at an event would grab. @param {PointerEvent} event */
  #target(event) {
    const { width, height } = this.stage.getBoundingClientRect();
    const reach = REACH[/** @type {keyof typeof REACH} */ (event.pointerType)] ?? REACH.mouse;
    const editable = this.#people.filter((person) => this.#canEdit(person));
    const own = editable.find((person) => person.own);
    return itemAt(editable, own, this.#locate(event), { x: reach / width, y: reach / height });
  }

  /** @param {PointerEvent} event */
  #press(event) {
    if (event.button !== 0) return;
    event.stopPropagation(); // else the graph moves the node
    if (this.#drag || !event.isPrimary) return;
    this.stage.setPointerCapture(event.pointerId);
    this.update();
    const target = this.#target(event);
    const person = target?.item ?? this.#own;
    if (!this.#canEdit(person)) return;
    window.addEventListener("pointerdown", this.#interrupt, { capture: true });
    this.#drag = {
      kind: target ? (target.handle ? "resize" : "move") : "draw",
      pointer: event.pointerId,
      person,
      handle: target?.handle ?? null,
      from: this.#locate(event),
      screen: { x: event.clientX, y: event.clientY },
      begun: false,
    };
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const drag = this.#drag;
    if (!drag) {
      // The graph, which did not get the press, would take it as a drag of the node.
      if (this.stage.hasPointerCapture(event.pointerId)) event.stopPropagation();
      const target = this.#target(event);
      this.#hover(target?.item ?? null, target?.handle ?? null);
      return;
    }
    if (event.pointerId !== drag.pointer) return;
    event.stopPropagation();
    const { person, from } = drag;
    const moved = Math.hypot(event.clientX - drag.screen.x, event.clientY - drag.screen.y);
    if (drag.kind === "draw" && moved < DRAW_FROM && !drag.begun) return;
    drag.begun = true;
    const now = this.#locate(event);
    const delta = /** @type {const} */ ([now.x - from.x, now.y - from.y]);
    if (drag.kind === "draw") this.#set(person, drawBox(from, now, person.grid));
    else if (drag.handle) this.#set(person, resizeBox(person.box, drag.handle, ...delta, person.grid));
    else this.#set(person, moveBox(person.box, ...delta, person.grid));
  }

  /** @param {PointerEvent} event */
  #release(event) {
    if (!this.#drag || event.pointerId !== this.#drag.pointer) return;
    event.stopPropagation();
    this.#finish();
  }

  #finish() {
    this.#end();
    this.#save();
  }

  #end() {
    this.#drag = null;
    window.removeEventListener("pointerdown", this.#interrupt, { capture: true });
  }

  /** Back to the box from before the drag. The pointer stays captured until it is released. */
  #cancel() {
    if (!this.#drag) return;
    const { person } = this.#drag;
    this.#end();
    this.#set(person, person.box);
    this.#unsaved = false;
  }

  /** @param {Person | null} person @param {Handle | null} [handle] */
  #hover(person, handle = null) {
    if (this.#drag) return;
    this.#hovered = person?.node ?? null;
    const own = this.#people.find((other) => other.own);
    const free = own && this.#canEdit(own) ? "crosshair" : "default";
    this.stage.style.cursor = person ? (handle ? `${CURSORS[handle]}-resize` : "move") : free;
    this.update();
  }

  // --- keyboard ------------------------------------------------------------------------------------------------------

  /** @param {KeyboardEvent} event */
  #keyDown(event) {
    if (event.key === "Escape" && this.#drag) {
      this.#cancel();
      this.#take(event);
      return;
    }
    const direction = KEYS[/** @type {keyof typeof KEYS} */ (event.key)];
    if (!direction || event.metaKey) return;
    this.#take(event);
    this.update();
    const own = this.#own;
    if (this.#drag) return;
    if (!this.#canEdit(own)) {
      this.spoken.textContent = this.message.textContent;
      return;
    }
    const length = own.grid.step * (event.shiftKey ? 10 : 1);
    const delta = /** @type {[number, number]} */ (direction.map((part) => part * length));
    const box =
      event.ctrlKey || event.altKey
        ? resizeBox(own.box, direction[0] ? "e" : "s", ...delta, own.grid)
        : moveBox(own.box, ...delta, own.grid);
    this.#set(own, box);
    this.spoken.textContent = this.stage.getAttribute("aria-label");
  }

  /** Marks an event as handled: it neither scrolls the page nor moves the node. @param {Event} event */
  #take(event) {
    event.preventDefault();
    event.stopPropagation();
  }

  // --- changing ------------------------------------------------------------------------------------------------------

  /** @param {Person} person @param {Box} box */
  #set(person, box) {
    if (writeBox(person.node, box)) this.#unsaved = true;
    this.update();
  }

  #save() {
    if (!this.#unsaved) return;
    this.#unsaved = false;
    this.host.changed();
  }
}
