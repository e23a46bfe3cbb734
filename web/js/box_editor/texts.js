/**
 * Texts of the box editor in the languages of `locales`. They are here because ComfyUI has no way for extensions to look up
 * their own texts. ComfyUI imports every script below `web` by itself; importing this one does nothing.
 */

const en = {
  role: "box editor",
  box: (/** @type {string[]} */ [left, top, width, height]) =>
    `Place of the face: left ${left}, top ${top}, width ${width}, height ${height}`,
  keys: "Arrow keys move the box, with Shift in larger steps. With Ctrl or Alt they change its size.",
  hint: "Drag the box, its edges, or empty space",
  mask: "The connected mask is used, not the box",
  bounding_box: "The connected bounding box is used, not the box",
  both: "Mask and bounding box are connected: disconnect one",
  linked: "The numbers come from other nodes",
  empty: "The box is empty",
  outside: "The box leaves the picture",
};

/** @type {Record<string, typeof en>} */
const languages = {
  en,
  zh: {
    role: "方框编辑器",
    box: ([left, top, width, height]) => `人脸位置：左 ${left}，上 ${top}，宽 ${width}，高 ${height}`,
    keys: "用方向键移动方框，按住 Shift 时步长更大；按住 Ctrl 或 Alt 时改变方框大小。",
    hint: "拖动方框或其边缘，或在空白处拖动重画",
    mask: "已连接遮罩，不使用方框",
    bounding_box: "已连接边界框，不使用方框",
    both: "同时连接了遮罩和边界框，请断开其中一个",
    linked: "数值来自其他节点",
    empty: "方框为空",
    outside: "方框超出画面",
  },
};

/** @param {string | undefined} locale such as "en" or "zh-TW" */
export function textsFor(locale) {
  return languages[locale ?? ""] ?? languages[(locale ?? "").split("-")[0]] ?? en;
}
