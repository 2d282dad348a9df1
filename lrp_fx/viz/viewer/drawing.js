// A drawing of a graph: nodes in layers, edges between them. It can be zoomed, dragged, and walked through with keys.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 60;

export function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// `places`: [x, y] of every node; `lines`: the elements of edges; `draw(number)`: the elements of a node around (0, 0);
// `next`: key -> function from a node to the one that the key leads to; `arrive(number)`: a node has the focus.
export function createDrawing({ label, places, lines, draw, describe, next, arrive, look }) {
  const nodes = places.map(([x, y], number) => shape("g", {
    role: "option", tabindex: number ? -1 : 0, "aria-selected": false, "aria-label": describe(number), transform: `translate(${x} ${y})`,
  }, ...draw(number)));
  const svg = shape("svg", { role: "listbox", "aria-label": label }, shape("g", { role: "presentation" }, ...lines), ...nodes);
  const [left, right] = [Math.min(...places.map(([x]) => x)) - MARGIN, Math.max(...places.map(([x]) => x)) + MARGIN];
  const [top, bottom] = [Math.min(...places.map(([, y]) => y)) - MARGIN, Math.max(...places.map(([, y]) => y)) + MARGIN];
  const all = [left, top, right - left, bottom - top];
  let view = all;
  let here = 0;
  show(all);

  function show(next) {
    view = next;
    svg.setAttribute("viewBox", view.join(" "));
  }

  // Zoom around a point, given as fractions of the view.
  function zoom(factor, x = 0.5, y = 0.5) {
    const [left, top, width, height] = view;
    show([left + width * x * (1 - factor), top + height * y * (1 - factor), width * factor, height * factor]);
  }

  // Move the view so that a node is in it, not at its edge.
  function reveal(number) {
    const inside = (place, start, size) => {
      const edge = Math.min(MARGIN, size / 4);
      return Math.min(Math.max(start, place + edge - size), place - edge);
    };
    const [x, y] = places[number];
    show([inside(x, view[0], view[2]), inside(y, view[1], view[3]), view[2], view[3]]);
  }

  function select(number) {
    nodes[here].setAttribute("tabindex", -1);
    nodes[here].setAttribute("aria-selected", false);
    here = number;
    nodes[here].setAttribute("tabindex", 0);
    nodes[here].setAttribute("aria-selected", true);
    reveal(number);
    arrive(number);
  }

  const commands = { "+": () => zoom(0.8), "-": () => zoom(1.25), 0: () => show(all) };
  const numberOf = (event) => nodes.indexOf(event.target.closest?.("[role=option]"));
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (next[event.key]) nodes[next[event.key](here)].focus();
    else if (commands[event.key]) commands[event.key]();
    else return;
    event.preventDefault();
  });
  svg.addEventListener("focusin", (event) => { if (numberOf(event) >= 0) select(numberOf(event)); });
  svg.addEventListener("pointerover", (event) => { if (numberOf(event) >= 0) look(numberOf(event)); });
  svg.addEventListener("wheel", (event) => {
    const { left, top, width, height } = svg.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.15 : 0.87, (event.clientX - left) / width, (event.clientY - top) / height);
    event.preventDefault();
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    const { width, height } = svg.getBoundingClientRect();
    const scale = Math.max(view[2] / width, view[3] / height);
    show([view[0] - event.movementX * scale, view[1] - event.movementY * scale, view[2], view[3]]);
  });

  const button = (text, name, click) => element("button", { type: "button", "aria-label": name, click }, text);
  const tools = [["+", "closer", "+"], ["\u2212", "farther", "-"], ["all", "all of it", "0"]];
  return {
    svg, nodes, show, all,
    buttons: tools.map(([text, name, key]) => button(text, name, commands[key])),
    here: () => (svg.contains(document.activeElement) ? here : null),
    go: (number) => nodes[number].focus(),
  };
}

// A smooth path through points, leaving and entering each along the direction of the layers.
export function path(points, down) {
  const bends = points.slice(1).map(([x, y], i) => {
    const [u, v] = points[i];
    const [p, q] = down ? [[u, (v + y) / 2], [x, (v + y) / 2]] : [[(u + x) / 2, v], [(u + x) / 2, y]];
    return `C${p} ${q} ${x},${y}`;
  });
  return `M${points[0]} ${bends.join(" ")}`;
}
