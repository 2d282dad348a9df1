// A canvas with a cell per number: images, waveforms, layers by tokens. Cells are reached by pointer or keys.

import { element, readout, say } from "./dom.js";
import { isShown, step } from "./scale.js";

// name: label; describe(x, y): text of a cell; look(x, y): called at a cell; choose(): called when cells are chosen.
export function createGrid({ name, describe, look = () => {}, choose = null }) {
  const canvas = element("canvas", { width: 1, height: 1 });
  const cursor = element("div", { class: "cursor", hidden: true });
  const frame = element("div", { class: "box", hidden: true });
  const node = element("div", { class: "grid", tabindex: "0", role: "application", "aria-roledescription": "map", "aria-label": name }, canvas, frame, cursor);
  const grid = { node, canvas, draw, width: 1, height: 1, box: null, sum, count };
  let at = { x: 0, y: 0 };
  let anchor = null;

  // overlay: from 0, the picture alone, to 1, relevance alone.
  // values: numbers for sums over chosen cells; shown: numbers for colours.
  function draw(values, shown, width, height, { largest, table, settings, picture = null, overlay = 1 }) {
    Object.assign(grid, { values, width, height });
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.putImageData(pixels(shown, width, height, { largest, table, settings, overlay: picture ? overlay : 1 }), 0, 0);
    if (!picture) return;
    context.globalCompositeOperation = "destination-over";
    context.filter = `grayscale(${Math.min(1, 2 * overlay)})`;
    context.drawImage(picture, 0, 0, width, height);
    context.filter = "none";
    context.globalCompositeOperation = "source-over";
  }

  function place(mark, { left, top, right, bottom }) {
    mark.hidden = false;
    mark.style.left = `${(100 * left) / grid.width}%`;
    mark.style.top = `${(100 * top) / grid.height}%`;
    mark.style.width = `${(100 * (right - left)) / grid.width}%`;
    mark.style.height = `${(100 * (bottom - top)) / grid.height}%`;
  }

  function cellOf(event) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const inside = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
    return { x: inside((event.clientX - left) / width, grid.width), y: inside((event.clientY - top) / height, grid.height) };
  }

  function go(cell) {
    at = cell;
    readout(describe(at.x, at.y));
    look(at.x, at.y);
  }

  function chooseTo(cell) {
    const [left, right] = [anchor.x, cell.x].sort((a, b) => a - b);
    const [top, bottom] = [anchor.y, cell.y].sort((a, b) => a - b);
    grid.box = { left, top, right: right + 1, bottom: bottom + 1 };
    place(frame, grid.box);
  }

  function clear() {
    grid.box = null;
    frame.hidden = true;
    choose();
  }

  function sum() {
    let amount = 0;
    if (!grid.box) return amount;
    const { left, top, right, bottom } = grid.box;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) amount += grid.values[y * grid.width + x];
    return amount;
  }

  function count() {
    return grid.box ? (grid.box.right - grid.box.left) * (grid.box.bottom - grid.box.top) : 0;
  }

  node.addEventListener("pointermove", (event) => {
    go(cellOf(event));
    if (choose && anchor && event.buttons) chooseTo(at);
  });
  node.addEventListener("pointerdown", (event) => {
    anchor = cellOf(event);
    if (choose) node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointerup", (event) => {
    if (!choose || !anchor) return;
    const cell = cellOf(event);
    if (cell.x === anchor.x && cell.y === anchor.y) clear();
    else choose();
    anchor = null;
  });
  node.addEventListener("blur", () => { cursor.hidden = true; });
  node.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.key === "Escape" && choose) clear();
    if (!move) return;
    event.preventDefault();
    const pace = event.ctrlKey ? 10 : 1;
    const inside = (value, count) => Math.max(0, Math.min(count - 1, value));
    if (event.shiftKey && choose) anchor ??= at;
    else anchor = null;
    go({ x: inside(at.x + pace * move[0], grid.width), y: inside(at.y + pace * move[1], grid.height) });
    place(cursor, { left: at.x, top: at.y, right: at.x + 1, bottom: at.y + 1 });
    if (anchor) {
      chooseTo(at);
      choose();
    } else say(describe(at.x, at.y));
  });
  return grid;
}

// Colours of all cells. Over a picture, larger values are more opaque; at overlay 1 all cells are opaque.
function pixels(values, width, height, { largest, table, settings, overlay }) {
  const image = new ImageData(width, height);
  const whole = new Uint32Array(image.data.buffer);
  const middle = (table.length - 1) / 2;
  const full = Math.min(1, 1.5 * overlay);
  const rest = overlay ** 3;
  const colours = table.map((colour, number) => {
    const share = Math.abs(number - middle) / middle;
    const alpha = Math.round(255 * (share * full + (1 - share) * rest));
    return new Uint32Array(Uint8ClampedArray.of(...colour, alpha).buffer)[0];
  });
  for (let i = 0; i < whole.length; i++) {
    whole[i] = colours[isShown(values[i], largest, settings) ? step(values[i], largest, table) : middle];
  }
  return image;
}
