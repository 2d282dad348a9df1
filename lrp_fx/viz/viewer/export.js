// The picture of a panel as a file: svg, or png rendered from it.

import { element } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";

export function exportButtons(panel, name) {
  const file = name.replace(/[^\w.-]+/g, "_") || "picture";
  const svg = () => download(new Blob([pictureOf(panel)], { type: "image/svg+xml" }), `${file}.svg`);
  const png = async () => download(await rastered(pictureOf(panel)), `${file}.png`);
  return element("div", { class: "tools export" },
    element("button", { type: "button", click: svg }, "Save as svg"), element("button", { type: "button", click: png }, "Save as png"));
}

function download(blob, name) {
  const link = element("a", { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The visible content of a panel: coloured boxes, canvases, images, and every word at its place.
export function pictureOf(panel) {
  const frame = panel.getBoundingClientRect();
  const svg = document.createElementNS(NAMESPACE, "svg");
  const shape = (tag, attributes, text = "") => {
    const made = document.createElementNS(NAMESPACE, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const where = (box) => ({ x: round(box.left - frame.left), y: round(box.top - frame.top), width: round(box.width), height: round(box.height) });
  const windows = new Map(); // a part that scrolls -> a picture that shows no more of it than the page does
  const windowAround = (node) => {
    const part = node.closest(".scroll, .text");
    if (!part) return svg;
    if (!windows.has(part)) {
      const { x, y, width, height } = where(part.getBoundingClientRect());
      const clipped = shape("svg", { x, y, width, height, viewBox: `${x} ${y} ${width} ${height}` });
      svg.append(clipped);
      windows.set(part, clipped);
    }
    return windows.get(part);
  };
  const size = { width: round(frame.width), height: round(frame.height) };
  for (const [name, value] of Object.entries({ ...size, viewBox: `0 0 ${size.width} ${size.height}` })) svg.setAttribute(name, value);
  svg.append(shape("rect", { ...size, fill: getComputedStyle(panel).backgroundColor }));
  for (const node of panel.querySelectorAll("*")) {
    if (node.closest(".tools, .unseen, [hidden], audio") || node.parentElement.closest("svg")) continue;
    const style = getComputedStyle(node);
    const box = where(node.getBoundingClientRect());
    const add = (...parts) => windowAround(node.parentElement).append(shape(...parts));
    if (node.tagName === "svg") {
      const copy = node.cloneNode(true);
      for (const [name, value] of Object.entries(where(node.getBoundingClientRect()))) copy.setAttribute(name, value);
      svg.append(copy);
    } else if (node.tagName === "CANVAS") add("image", { ...box, href: node.toDataURL(), preserveAspectRatio: "none", "image-rendering": "pixelated" });
    else if (node.tagName === "IMG") add("image", { ...box, href: node.src, preserveAspectRatio: "none" });
    else if (style.backgroundColor !== "rgba(0, 0, 0, 0)" && style.backgroundColor !== "transparent") {
      add("rect", { ...box, rx: parseFloat(style.borderTopLeftRadius) || 0, fill: style.backgroundColor });
    }
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) wordsOf(child, style, where, (...parts) => windowAround(node).append(shape(...parts)));
    }
  }
  return new XMLSerializer().serializeToString(svg);
}

function wordsOf(node, style, where, add) {
  const range = document.createRange();
  for (const match of node.data.matchAll(/\S+/g)) {
    range.setStart(node, match.index);
    range.setEnd(node, match.index + match[0].length);
    const box = where(range.getBoundingClientRect());
    if (!box.width) continue;
    const upright = !style.writingMode.startsWith("vertical"); // otherwise it reads upwards
    const [x, y] = upright ? [box.x, round(box.y + 0.78 * box.height)] : [round(box.x + 0.78 * box.width), round(box.y + box.height)];
    add("text", {
      x, y, fill: style.color, "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight,
      textLength: upright ? box.width : box.height, lengthAdjust: "spacingAndGlyphs", ...(upright ? {} : { transform: `rotate(-90 ${x} ${y})` }),
    }, match[0]);
  }
}

const round = (value) => Math.round(100 * value) / 100;

async function rastered(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = element("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
