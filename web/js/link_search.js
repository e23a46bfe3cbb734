/**
 * Offers Apply DynamicID when a link of a face or of placements is dropped into empty space.
 *
 * Its input `faces` takes both, and so has the type "DYNAMICID_FACE,DYNAMICID_PLACEMENTS". ComfyUI's search for nodes that
 * fit a link compares whole types, and would find it for neither, although it accepts links of both.
 * If an interface searches in another way, this changes nothing.
 */

import { app } from "../../../scripts/app.js";

const EACH = ["DYNAMICID_FACE", "DYNAMICID_PLACEMENTS"];
const BOTH = EACH.join(",");
const FILTERS = ["input", "output"];

/** Whether nodes with sockets of some types fit a link of another type. @param {unknown[]} types @param {unknown} link */
function fits(types, link) {
  return link === BOTH ? EACH.some((type) => types.includes(type)) : EACH.includes(link) && types.includes(BOTH);
}

/** The class of ComfyUI's filters; the filters themselves are recreated with every list of nodes. */
function filterClass() {
  const stores = document.querySelector("#vue-app")?.__vue_app__?.config?.globalProperties?.$pinia?._s;
  const filter = stores?.get?.("nodeDef")?.nodeSearchService?.inputTypeFilter;
  return filter && Object.getPrototypeOf(filter);
}

app.registerExtension({
  name: "dynamicid.linkSearch",

  setup() {
    const filters = filterClass();
    const matches = filters?.matches;
    if (!matches) return;
    filters.matches = function (node, type, ...rest) {
      if (matches.call(this, node, type, ...rest)) return true;
      return FILTERS.includes(this.id) && fits(this.getItemOptions?.(node) ?? [], type);
    };
  },
});
