/**
 * Reads what a Place Face node's picture shows from ComfyUI's graph: the boxes of all people in the layout and the size of
 * the picture. Only reads and sets numbers of nodes; does not touch the page.
 * ComfyUI imports every script below `web` by itself; importing this one does nothing.
 *
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {import("./geometry.js").Grid} Grid
 * @typedef {{width: number, height: number}} Size
 * @typedef {object} Person One Place Face node of the layout.
 * @property {object} node
 * @property {boolean} own whether it is the node that shows the layout
 * @property {number} number 1 for the first person of the chain
 * @property {string} name the node's title, if the user gave it one
 * @property {Box} box
 * @property {Grid} grid
 * @property {"mask" | "bounding_box" | "both" | null} replacedBy the connected input that replaces the box; both are a
 *   mistake
 * @property {boolean} linked whether a number comes from another node, so that it cannot be set here
 */

export const NODE = "DynamicIDPlaceFace";
export const FIELDS = /** @type {const} */ (["x", "y", "width", "height"]);
const DEFAULTS = { x: 0.25, y: 0.1, width: 0.5, height: 0.8 };
const REPLACEMENTS = /** @type {const} */ (["mask", "bounding_box"]);
const CHAIN = "placements";

// ComfyUI's modes of a node.
const MUTED = 2;
const BYPASSED = 4;
// No graph needs more; it ends the search in a cyclic one.
const SEARCH_LIMIT = 500;

/** @param {object} node */
export const isPlaceFace = (node) => node?.comfyClass === NODE;

// --- the people ------------------------------------------------------------------------------------------------------

/**
 * All people of a node's layout, in the order of the chain.
 * @param {object} node @returns {Person[]}
 */
export function readPeople(node) {
  const chain = [...earlierNodes(node), node, ...laterNodes(node)];
  const placed = placedBefore(chain[0]);
  const taking = chain.filter((other) => other === node || other.mode !== BYPASSED);
  return taking.map((other, index) => ({
    node: other,
    own: other === node,
    number: placed + index + 1,
    name: ownTitle(other),
    box: readBox(other),
    grid: readGrid(other),
    replacedBy: replacementOf(other),
    // Also by one that will not run: the number on the node does not replace it.
    linked: FIELDS.some((name) => originOf(other, name) !== null),
  }));
}

/** @param {object} node @returns {Person["replacedBy"]} */
function replacementOf(node) {
  const used = REPLACEMENTS.filter((name) => {
    const origin = originOf(node, name);
    return origin && origin.node?.mode !== MUTED;
  });
  return used.length > 1 ? "both" : (used[0] ?? null);
}

/** The title that a user gave a node, "" for the default one. @param {object} node */
function ownTitle(node) {
  const { title } = node;
  return title && title !== node.constructor?.title && title !== NODE ? title : "";
}

/** How many people a node before the chain places, such as Auto Layout, which has no boxes to show. @param {object} first */
function placedBefore(first) {
  const before = sourceOf(first, CHAIN);
  if (!before || isPlaceFace(before) || before.mode === MUTED) return 0;
  return before.inputs?.filter(({ type }, slot) => type === "DYNAMICID_FACE" && before.isInputConnected(slot)).length ?? 0;
}

/** Place Face nodes before this one, first one first. @param {object} node */
function earlierNodes(node) {
  const found = [];
  for (let at = sourceOf(node, CHAIN); at && found.length < SEARCH_LIMIT; at = sourceOf(at, CHAIN)) {
    if (!isPlaceFace(at) || at === node || found.includes(at) || at.mode === MUTED) break;
    found.unshift(at);
  }
  return found;
}

/** Place Face nodes after this one. Where the chain forks, the branch that was connected first. @param {object} node */
function laterNodes(node) {
  const found = [];
  for (let at = nextInChain(node); at && found.length < SEARCH_LIMIT; at = nextInChain(at)) {
    if (at === node || found.includes(at) || at.mode === MUTED) break;
    found.push(at);
  }
  return found;
}

/** @param {object} node */
function nextInChain(node) {
  return targetsOf(node).find((target) => isPlaceFace(target.node) && target.input.name === CHAIN)?.node;
}

/** @param {object} node @returns {Box} */
export function readBox(node) {
  const [x, y, width, height] = FIELDS.map(
    (name) => readNumber(node, name) ?? numberOf(findWidget(node, name)) ?? DEFAULTS[name],
  );
  return { x, y, width, height };
}

/**
 * Steps are those of the arrows on the number widgets, so that the numbers show the exact box. A setting of the interface
 * may give them fewer decimal places.
 * @param {object} node @returns {Grid}
 */
function readGrid(node) {
  const { step2, precision } = findWidget(node, "x")?.options ?? {};
  const step = Math.max(step2 || 0.01, 10 ** -(precision ?? 2));
  const smallest = (/** @type {string} */ name) => Math.max(findWidget(node, name)?.options?.min ?? 0, step);
  return { step, smallest: { x: smallest("width"), y: smallest("height") } };
}

/**
 * Set a node's numbers as if they had been typed. Without a change, does nothing and returns false.
 * @param {object} node @param {Box} box
 */
export function writeBox(node, box) {
  let changed = false;
  for (const name of FIELDS) {
    const widget = findWidget(node, name);
    if (!widget || widget.value === box[name]) continue;
    widget.value = box[name];
    // The interface and other extensions expect to be notified of a value that the user changed.
    widget.callback?.(box[name]);
    changed = true;
  }
  if (changed) node.setDirtyCanvas?.(true, true);
  return changed;
}

// --- the picture -----------------------------------------------------------------------------------------------------

/**
 * Size in pixels of the layout's picture: that of the latent of the first sampler that its placements lead to and that will
 * run. null if the graph does not show it.
 * @param {object} node @returns {Size | null}
 */
export function readPictureSize(node) {
  const seen = new Set([node]);
  const queue = [node];
  while (queue.length && seen.size < SEARCH_LIMIT) {
    const at = queue.shift();
    const latent = at.inputs?.findIndex(({ type }, slot) => type === "LATENT" && at.isInputConnected(slot)) ?? -1;
    if (latent >= 0 && at.mode !== BYPASSED) return sizeFrom(sourceAt(at, latent), new Set());
    for (const { node: target } of targetsOf(at)) {
      if (!seen.has(target) && target.mode !== MUTED) {
        seen.add(target);
        queue.push(target);
      }
    }
  }
  return null;
}

/**
 * The size of what a node puts out: its own numbers, those of the photo it shows, or of what comes in.
 * @param {object | null} node @param {Set<object>} seen @returns {Size | null}
 */
function sizeFrom(node, seen) {
  if (!node || seen.has(node) || seen.size > SEARCH_LIMIT) return null;
  seen.add(node);
  const [width, height] = ["width", "height"].map((name) => readNumber(node, name));
  if (width > 0 && height > 0) return { width, height };
  const picture = node.imgs?.[0];
  const hasSource = node.inputs?.some(({ type }, slot) => type === "IMAGE" && node.isInputConnected(slot));
  if (picture?.naturalWidth > 0 && !hasSource) {
    return { width: picture.naturalWidth, height: picture.naturalHeight };
  }
  for (const type of ["LATENT", "IMAGE"]) {
    for (const [slot, input] of (node.inputs ?? []).entries()) {
      const size = input.type === type ? sizeFrom(sourceAt(node, slot), seen) : null;
      if (size) return size;
    }
  }
  return null;
}

// --- nodes and links -------------------------------------------------------------------------------------------------

/** @param {object} node @param {string} name */
const findWidget = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** @param {object | undefined} widget @returns {number | null} */
const numberOf = (widget) => (Number.isFinite(widget?.value) ? widget.value : null);

/**
 * A number of a node: its widget's, that of a subgraph's own widget for it, or that of the node which is connected in its
 * place if that one only holds a number.
 * @param {object} node @param {string} name @returns {number | null}
 */
function readNumber(node, name) {
  const origin = originOf(node, name);
  if (!origin) return numberOf(findWidget(node, name));
  if (origin.widget) return numberOf(origin.widget);
  const widget = origin.node?.widgets?.[0];
  return ["value", name].includes(widget?.name) ? numberOf(widget) : null;
}

/**
 * What a named input gets in the prompt instead of the node's own value: from a node, or from the widget that replaces it on
 * the node of a subgraph. Neither is known at the edge of a subgraph with several nodes. null: nothing.
 * @param {object} node @param {string} name @returns {{node?: object, widget?: object} | null}
 */
function originOf(node, name) {
  let slot = slotOf(node, name);
  for (let depth = 0; depth < SEARCH_LIMIT; depth++) {
    const end = endAt(node, slot);
    if (!end) return null;
    if (end.origin) return { node: end.origin };
    const around = nodeOfSubgraph(node.graph);
    if (!around) return {};
    [node, slot] = [around, end.slot];
    const input = node.inputs?.[slot];
    const widget = input?.widget && !node.isInputConnected(slot) && findWidget(node, input.widget.name);
    if (widget) return { widget };
  }
  return null;
}

/** The node that stands for a subgraph in another graph, null if that is not just one. @param {object} graph */
function nodeOfSubgraph(graph) {
  const root = graph.rootGraph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  const found = graphs.flatMap(({ nodes }) => nodes.filter((node) => node.subgraph === graph));
  return found.length === 1 ? found[0] : null;
}

/** @param {object} node @param {string} name */
const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

/**
 * The link at an input. The node of a subgraph has a method of that name that does something else, so not its own.
 * @param {object} node @param {number} slot
 */
const linkAt = (node, slot) => globalThis.LiteGraph.LGraphNode.prototype.getInputLink.call(node, slot);

/**
 * The node that a named input is connected to.
 * @param {object} node @param {string} name @returns {object | null}
 */
const sourceOf = (node, name) => sourceAt(node, slotOf(node, name));

/**
 * The node behind an input.
 * @param {object} node @param {number} slot @returns {object | null}
 */
const sourceAt = (node, slot) => endAt(node, slot)?.origin ?? null;

/**
 * Where the links behind an input begin, past reroutes and bypassed nodes (other than Place Face, whose chain goes on by
 * itself): at a node, or without one at an input of the subgraph around. null: nowhere.
 * @param {object} node @param {number} slot @returns {{origin: object | null, slot: number} | null}
 */
function endAt(node, slot) {
  for (let step = 0; step < SEARCH_LIMIT; step++) {
    const link = node.graph && node.inputs?.[slot] ? linkAt(node, slot) : null;
    if (!link) return null;
    const origin = node.graph.getNodeById(link.origin_id);
    const passes = origin?.type === "Reroute" || (origin?.mode === BYPASSED && !isPlaceFace(origin));
    if (!passes) return { origin, slot: link.origin_slot };
    node = origin;
    slot = origin.type === "Reroute" ? 0 : (origin.inputs?.findIndex((input) => input.type === link.type) ?? -1);
  }
  return null;
}

/**
 * All inputs that a node's outputs lead to, past reroutes.
 * @param {object} node @returns {{node: object, input: object}[]}
 */
function targetsOf(node, depth = 0) {
  const found = [];
  for (const slot of node.outputs?.keys() ?? []) {
    for (const target of new Set(node.getOutputNodes(slot) ?? [])) {
      const inputs = target.inputs.filter((_, at) => {
        const link = linkAt(target, at);
        return link?.origin_slot === slot && node.graph.getNodeById(link.origin_id) === node;
      });
      if (target.type === "Reroute" && depth < SEARCH_LIMIT) found.push(...targetsOf(target, depth + 1));
      else found.push(...inputs.map((input) => ({ node: target, input })));
    }
  }
  return found;
}
