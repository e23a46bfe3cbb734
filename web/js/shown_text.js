/**
 * Shows a node's text output on the node: the sentence of Describe Face, and the file name of Save Face and Save
 * Keypoints. The server sends the text, but ComfyUI draws it only on its own nodes.
 *
 * The text is part of neither the prompt nor the saved workflow.
 */

import { app } from "../../../scripts/app.js";

const NODES = ["DynamicIDDescribeFace", "DynamicIDSaveFace", "DynamicIDSaveKeypoints"];
const WIDTH = 300;
const HEIGHT = 60;

/** A text that can be selected and copied, but not changed. @param {any} node @returns {HTMLTextAreaElement} */
function addField(node) {
  const field = document.createElement("textarea");
  field.className = "comfy-multiline-input";
  field.readOnly = true;
  // For nodes that are DOM elements, which give no size. Elsewhere ComfyUI keeps a margin of 10 px on all sides.
  Object.assign(field.style, { width: "100%", height: "100%", minHeight: `${HEIGHT - 20}px`, boxSizing: "border-box" });
  // Not ComfyWidgets.STRING: where nodes are DOM elements, it would keep its first text.
  const widget = node.addDOMWidget("shown_text", "DYNAMICID_SHOWN_TEXT", field, {
    serialize: false, // not part of the prompt
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false; // not part of the workflow
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0], WIDTH), Math.max(height, node.size[1])]);
  return field;
}

app.registerExtension({
  name: "dynamicid.shownText",

  /** @param {any} node */
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const { onExecuted } = node;
    /** @type {HTMLTextAreaElement | undefined} */
    let field;
    node.onExecuted = function (message, ...rest) {
      onExecuted?.call(this, message, ...rest);
      if (!message?.text) return;
      field ??= addField(this);
      field.value = [message.text].flat().join("\n");
      this.setDirtyCanvas?.(true, true);
    };
  },
});
