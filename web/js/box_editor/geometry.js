/**
 * Boxes in fractions of a picture: moving, resizing, drawing, finding the one under a point. Pure functions, no browser.
 * ComfyUI imports every script below `web` by itself; importing this one does nothing.
 *
 * @typedef {{x: number, y: number, width: number, height: number}} Box Top left corner and size, fractions of the picture.
 * @typedef {{x: number, y: number}} Point
 * @typedef {"n"|"s"|"e"|"w"|"nw"|"ne"|"sw"|"se"} Handle The dragged edge or corner, by compass direction.
 * @typedef {{step: number, smallest: Point}} Grid The rounding step, and the smallest width (x) and height (y).
 */

/** In the order in which they are drawn; corners last, since they lie on top. */
export const HANDLES = /** @type {Handle[]} */ (["n", "s", "e", "w", "nw", "ne", "sw", "se"]);

/**
 * The nearest multiple of a step, without the digits that binary fractions leave behind.
 * @param {number} value
 * @param {number} step
 */
export function roundTo(value, step) {
  return Number((Math.round(value / step) * step).toFixed(6));
}

/**
 * The largest multiple of a step that is not above a value.
 * @param {number} value
 * @param {number} step
 */
export function floorTo(value, step) {
  return Number((Math.floor(value / step + 1e-6) * step).toFixed(6));
}

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Whether a box is inside the picture. @param {Box} box */
export function isInside(box) {
  const reach = (/** @type {number} */ from, /** @type {number} */ size) =>
    from >= 0 && roundTo(from + size, 1e-6) <= 1;
  return reach(box.x, box.width) && reach(box.y, box.height);
}

/** Whether a box has no area. @param {Box} box */
export function isEmpty(box) {
  return !(box.width > 0 && box.height > 0);
}

/**
 * The box moved, but not beyond the picture.
 * @param {Box} box @param {number} dx @param {number} dy @param {Grid} grid @returns {Box}
 */
export function moveBox(box, dx, dy, grid) {
  const width = clamp(box.width, grid.smallest.x, 1);
  const height = clamp(box.height, grid.smallest.y, 1);
  return {
    x: clamp(roundTo(box.x + dx, grid.step), 0, floorTo(1 - width, grid.step)),
    y: clamp(roundTo(box.y + dy, grid.step), 0, floorTo(1 - height, grid.step)),
    width,
    height,
  };
}

/**
 * The box with the dragged edges moved; the opposite ones stay.
 * @param {Box} box @param {Handle} handle @param {number} dx @param {number} dy @param {Grid} grid @returns {Box}
 */
export function resizeBox(box, handle, dx, dy, grid) {
  const horizontal = resizeSpan(box.x, box.width, pull(handle, "w", "e"), dx, grid.smallest.x, grid.step);
  const vertical = resizeSpan(box.y, box.height, pull(handle, "n", "s"), dy, grid.smallest.y, grid.step);
  return { x: horizontal.from, y: vertical.from, width: horizontal.size, height: vertical.size };
}

/**
 * Which end of an axis a handle moves: -1 the near one, 1 the far one, 0 none.
 * @param {Handle} handle @param {string} near @param {string} far
 */
function pull(handle, near, far) {
  if (handle.includes(near)) return -1;
  return handle.includes(far) ? 1 : 0;
}

/**
 * One axis of a resize.
 * @param {number} from @param {number} size @param {number} end @param {number} delta @param {number} smallest
 * @param {number} step
 */
function resizeSpan(from, size, end, delta, smallest, step) {
  if (end === 0) return { from, size };
  const to = from + size;
  const moved = roundTo((end < 0 ? from : to) + delta, step);
  const start = end < 0 ? clamp(moved, 0, clamp(to - smallest, 0, 1)) : clamp(from, 0, 1 - smallest);
  const length = end < 0 ? to - start : moved - start;
  // Rounded again, and down where that would reach outside: the other edge may lie between two steps.
  const snapped = roundTo(start, end < 0 ? step : 1e-6);
  return { from: snapped, size: clamp(roundTo(length, step), smallest, floorTo(1 - snapped, step)) };
}

/**
 * The box between the corner where drawing began and the current point, in any direction.
 * @param {Point} start @param {Point} now @param {Grid} grid @returns {Box}
 */
export function drawBox(start, now, grid) {
  const horizontal = drawSpan(start.x, now.x, grid.smallest.x, grid.step);
  const vertical = drawSpan(start.y, now.y, grid.smallest.y, grid.step);
  return { x: horizontal.from, y: vertical.from, width: horizontal.size, height: vertical.size };
}

/** @param {number} start @param {number} now @param {number} smallest @param {number} step */
function drawSpan(start, now, smallest, step) {
  const low = clamp(roundTo(Math.min(start, now), step), 0, 1);
  const high = clamp(roundTo(Math.max(start, now), step), 0, 1);
  const size = Math.max(roundTo(high - low, step), smallest);
  const from = now < start ? high - size : low;
  return { from: clamp(roundTo(from, step), 0, floorTo(1 - size, step)), size };
}

/**
 * Where a handle lies on a box.
 * @param {Box} box @param {Handle} handle @returns {Point}
 */
export function handlePoint(box, handle) {
  return {
    x: box.x + (box.width * (1 + pull(handle, "w", "e"))) / 2,
    y: box.y + (box.height * (1 + pull(handle, "n", "s"))) / 2,
  };
}

/**
 * The handle under a point, corners before edges. `reach` is the tolerance around an edge, per axis.
 * @param {Box} box @param {Point} point @param {Point} reach @returns {Handle | null}
 */
export function handleAt(box, point, reach) {
  const right = box.x + box.width;
  const bottom = box.y + box.height;
  const near = (/** @type {number} */ value, /** @type {number} */ edge, /** @type {number} */ tolerance) =>
    Math.abs(value - edge) <= tolerance;
  if (point.x < box.x - reach.x || point.x > right + reach.x) return null;
  if (point.y < box.y - reach.y || point.y > bottom + reach.y) return null;
  // A third of a small box is left for moving it.
  const x = Math.min(reach.x, point.x >= box.x && point.x <= right ? box.width / 3 : reach.x);
  const y = Math.min(reach.y, point.y >= box.y && point.y <= bottom ? box.height / 3 : reach.y);
  const vertical = near(point.y, box.y, y) ? "n" : near(point.y, bottom, y) ? "s" : "";
  const horizontal = near(point.x, box.x, x) ? "w" : near(point.x, right, x) ? "e" : "";
  return /** @type {Handle | null} */ (vertical + horizontal || null);
}

/** @param {Box} box @param {Point} point */
export function contains(box, point) {
  return (
    point.x >= box.x && point.x <= box.x + box.width && point.y >= box.y && point.y <= box.y + box.height
  );
}

/**
 * The box that a press at a point grabs, and by which handle. The preferred box's handles come first; else the smallest
 * box there, so that a box inside another can be reached; of two equally large ones, the preferred one.
 * @template {{box: Box}} T
 * @param {T[]} items @param {T | undefined} preferred @param {Point} point @param {Point} reach
 * @returns {{item: T, handle: Handle | null} | null}
 */
export function itemAt(items, preferred, point, reach) {
  if (preferred) {
    const handle = handleAt(preferred.box, point, reach);
    if (handle) return { item: preferred, handle };
  }
  const area = (/** @type {T} */ item) => roundTo(item.box.width * item.box.height, 1e-6);
  const bySize = [...items].sort((a, b) => area(a) - area(b) || Number(b === preferred) - Number(a === preferred));
  for (const item of bySize) {
    const handle = item === preferred ? null : handleAt(item.box, point, reach);
    if (handle || contains(item.box, point)) return { item, handle };
  }
  return null;
}

/**
 * The largest rectangle of an aspect ratio at the top of an area.
 * @param {number} width @param {number} height @param {number} aspect width / height
 */
export function fitInside(width, height, aspect) {
  const fitted = Math.max(Math.min(width, height * aspect), 1);
  return { left: (width - fitted) / 2, width: fitted, height: fitted / aspect };
}
