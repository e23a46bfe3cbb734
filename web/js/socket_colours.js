/**
 * Gives sockets and links of the pack's types colours of their own.
 *
 * They differ from each other and from ComfyUI's own, on dark and light palettes. A palette's own colour for one of these
 * types is kept.
 */

import { app } from "../../../scripts/app.js";

const COLOURS = {
  DYNAMICID: "#8c52ff",
  FACE_ANALYSIS: "#a86a00",
  DYNAMICID_FACE: "#ff2d95",
  DYNAMICID_PLACEMENTS: "#009e9e",
  FACE_KEYPOINTS: "#3fa600",
  "DYNAMICID_FACE,DYNAMICID_PLACEMENTS": "#ff2d95", // `faces` of Apply DynamicID, and links to it
};

/**
 * A property, not just a value: on every change of palette, ComfyUI clears the colours of types that it does not have.
 * @param {Record<string, string> | undefined} colours @param {string} type @param {string} own
 */
function addColour(colours, type, own) {
  if (!colours) return;
  let ofPalette = colours[type];
  Object.defineProperty(colours, type, {
    get: () => ofPalette || own,
    set: (colour) => (ofPalette = colour),
    enumerable: true,
    configurable: true,
  });
}

/** For nodes that are DOM elements. A palette sets these variables inline on the body. */
function addStyle() {
  const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${CSS.escape(type)}: ${colour};`);
  const style = document.createElement("style");
  style.textContent = `body { ${variables.join(" ")} }`;
  document.head.append(style);
}

app.registerExtension({
  name: "dynamicid.socketColours",

  setup() {
    for (const [type, colour] of Object.entries(COLOURS)) {
      addColour(app.canvas?.constructor?.link_type_colors, type, colour); // links
      addColour(app.canvas?.default_connection_color_byType, type, colour); // sockets
    }
    addStyle();
    app.canvas?.setDirty?.(true, true);
  },
});
