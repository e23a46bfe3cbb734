/**
 * Puts the box editor on every Place Face node.
 *
 * The editor is a view: x, y, width and height of the node are what is saved in the workflow and sent with the prompt, and
 * a graph in API form needs nothing of this.
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
let watching = false;
/** @type {{stage: Element, id: number | string} | null} the picture that has the keyboard, and its node */
let focused = null;

/**
 * Numbers change in many ways: typed, dragged, undone, loaded, set by scripts, linked. ComfyUI has no event for all of them,
 * so the editors look, once per frame, while there are any.
 */
function watch() {
  watching = editors.size > 0;
  if (watching) requestAnimationFrame(watch);
  for (const editor of editors) {
    if (isGone(editor.node)) {
      editors.delete(editor);
      continue;
    }
    try {
      editor.update();
    } catch (error) {
      // One that fails must not take the others along, nor say so sixty times a second.
      if (!failed.has(editor)) console.error("DynamicID: a box cannot be drawn.", error);
      failed.add(editor);
    }
  }
  returnFocus();
}

/** Whether a node's graph is not one of the workflow's: nodes of a subgraph do not hear of its end. @param {any} node */
function isGone({ graph }) {
  return graph && graph !== app.graph && app.graph.subgraphs?.get(graph.id) !== graph;
}

/** @param {Event} event */
function noteFocus(event) {
  const editor = [...editors].find(({ stage }) => stage === event.target);
  focused = editor ? { stage: editor.stage, id: editor.node.id } : null;
}

/** Undo makes a node anew, and the keyboard would be nowhere: the new picture gets it. */
function returnFocus() {
  if (!focused || focused.stage.isConnected || document.activeElement !== document.body) return;
  const { id } = focused;
  for (const { node, stage } of editors) {
    if (node.id === id) stage.focus({ preventScroll: true }); // does nothing in a graph that is not shown
  }
}

function watchFocus() {
  document.addEventListener("focusin", noteFocus);
  const forget = (/** @type {Event} */ event) => {
    if (event.target !== focused?.stage) focused = null;
  };
  document.addEventListener("pointerdown", forget, { capture: true });
}

/** @param {BoxEditor} editor */
function follow(editor) {
  editors.add(editor);
  if (!watching) {
    watching = true;
    requestAnimationFrame(watch);
  }
}

/** @type {import("./box_editor/editor.js").Host} */
const host = {
  // Between these two the interface looks whether there is something to undo.
  changed: () => {
    app.canvas?.emitBeforeChange?.();
    app.canvas?.emitAfterChange?.();
  },
  forward: (event) => {
    const canvas = app.canvas?.canvas;
    // Where nodes are page elements, the event reaches the graph by itself.
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
    watchFocus();
  },

  /** @param {any} node */
  nodeCreated(node) {
    if (!isPlaceFace(node)) return;
    const editor = new BoxEditor(node, host);
    const widget = node.addDOMWidget("box_editor", "DYNAMICID_BOX_EDITOR", editor.element, {
      serialize: false, // not part of the prompt
      hideOnZoom: false, // the layout is worth seeing from afar
      getMinHeight: () => SMALLEST_PICTURE_HEIGHT,
    });
    widget.serialize = false; // not part of the workflow

    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, NODE_WIDTH), height + PICTURE_HEIGHT - SMALLEST_PICTURE_HEIGHT]);

    // A removed node may be added again: the editor then goes on.
    const { onAdded, onRemoved } = node;
    node.onAdded = function (...args) {
      follow(editor);
      return onAdded?.apply(this, args);
    };
    node.onRemoved = function (...args) {
      editors.delete(editor);
      return onRemoved?.apply(this, args);
    };
    if (node.graph) follow(editor);
  },
});
