/**
 * Adds the box editor to every Place Face node.
 *
 * The editor is only a view: the workflow and the prompt have the node's x, y, width and height, and a graph in API form
 * does not need it.
 */

import { app } from "../../../scripts/app.js";
import { BoxEditor } from "./box_editor/editor.js";
import { isPlaceFace } from "./box_editor/layout.js";

// For a new node: room for the picture below the numbers.
const NODE_WIDTH = 320;
const PICTURE_HEIGHT = 320;
const SMALLEST_PICTURE_HEIGHT = 200;

/** @type {Set<BoxEditor>} */
const editors = new Set();
const failed = new WeakSet();
let polling = false;
/** @type {{stage: Element, id: number | string} | null} the focused picture and its node */
let focused = null;

/**
 * Numbers change in many ways: typed, dragged, undone, loaded, set by scripts, linked. ComfyUI has no event for all of them,
 * so the editors poll them once per frame, while there are any.
 */
function pollEditors() {
  polling = editors.size > 0;
  if (polling) requestAnimationFrame(pollEditors);
  for (const editor of editors) {
    if (isGone(editor.node)) {
      editors.delete(editor);
      continue;
    }
    try {
      editor.update();
    } catch (error) {
      // One that fails must not stop the others, nor log sixty times a second.
      if (!failed.has(editor)) console.error("DynamicID: a box cannot be drawn.", error);
      failed.add(editor);
    }
  }
  returnFocus();
}

/** Whether a node's graph is no longer in the workflow: nodes of a removed subgraph get no event. @param {any} node */
function isGone({ graph }) {
  return graph && graph !== app.graph && app.graph.subgraphs?.get(graph.id) !== graph;
}

/** @param {Event} event */
function rememberFocus(event) {
  const editor = [...editors].find(({ stage }) => stage === event.target);
  focused = editor ? { stage: editor.stage, id: editor.node.id } : null;
}

/** Undo replaces the node, which loses the focus: give it to the new picture. */
function returnFocus() {
  if (!focused || focused.stage.isConnected || document.activeElement !== document.body) return;
  const { id } = focused;
  for (const { node, stage } of editors) {
    if (node.id === id) stage.focus({ preventScroll: true }); // does nothing in a graph that is not visible
  }
}

function trackFocus() {
  document.addEventListener("focusin", rememberFocus);
  const forget = (/** @type {Event} */ event) => {
    if (event.target !== focused?.stage) focused = null;
  };
  document.addEventListener("pointerdown", forget, { capture: true });
}

/** @param {BoxEditor} editor */
function addEditor(editor) {
  editors.add(editor);
  if (!polling) {
    polling = true;
    requestAnimationFrame(pollEditors);
  }
}

/** @type {import("./box_editor/editor.js").Host} */
const host = {
  // Between these two, the interface checks for a change to undo.
  changed: () => {
    app.canvas?.emitBeforeChange?.();
    app.canvas?.emitAfterChange?.();
  },
  forward: (event) => {
    const canvas = app.canvas?.canvas;
    // Where nodes are DOM elements, the event reaches the graph by itself.
    if (!canvas || globalThis.LiteGraph?.vueNodesMode) return;
    event.preventDefault();
    event.stopPropagation();
    canvas.dispatchEvent(new event.constructor(event.type, event));
  },
  locale: () => app.extensionManager?.setting?.get?.("Comfy.Locale"),
};

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./box_editor/style.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "dynamicid.boxEditor",

  setup() {
    addStyle();
    trackFocus();
  },

  /** @param {any} node */
  nodeCreated(node) {
    if (!isPlaceFace(node)) return;
    const editor = new BoxEditor(node, host);
    const widget = node.addDOMWidget("box_editor", "DYNAMICID_BOX_EDITOR", editor.element, {
      serialize: false, // not part of the prompt
      hideOnZoom: false, // the layout is useful when zoomed out
      getMinHeight: () => SMALLEST_PICTURE_HEIGHT,
    });
    widget.serialize = false; // not part of the workflow

    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, NODE_WIDTH), height + PICTURE_HEIGHT - SMALLEST_PICTURE_HEIGHT]);

    // A removed node may be added again: its editor then continues.
    const { onAdded, onRemoved } = node;
    node.onAdded = function (...args) {
      addEditor(editor);
      return onAdded?.apply(this, args);
    };
    node.onRemoved = function (...args) {
      editors.delete(editor);
      return onRemoved?.apply(this, args);
    };
    if (node.graph) addEditor(editor);
  },
});
