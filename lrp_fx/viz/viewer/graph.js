// A circuit: nodes in layers, edges with a width by their relevance. It can be zoomed and dragged.

import { element, readout } from "./dom.js";
import { createLegend } from "./legend.js";
import { numbers, percent, signed } from "./numbers.js";
import { isShown, largestOf, step } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const [ACROSS, DOWN, RADIUS] = [170, 46, 9];

function drawing(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function createGraph(panel, input) {
  const relevance = numbers(input.relevance);
  const legend = createLegend(panel);
  const at = input.nodes.map(({ x, y }) => [x * ACROSS, y * DOWN]);
  const edges = input.edges.map(([from, to, weight]) => ({ from, to, weight, line: drawing("path", { d: curve(at[from], at[to]), fill: "none" }) }));
  const nodes = input.nodes.map((node, number) => drawing("g", { role: "option", tabindex: number ? -1 : 0, "aria-selected": false, "aria-label": describe(number) },
    drawing("circle", { cx: at[number][0], cy: at[number][1], r: RADIUS, "stroke-width": 1 }),
    drawing("text", { x: at[number][0], y: at[number][1] + RADIUS + 12, "text-anchor": "middle", "font-size": 10, "font-family": "sans-serif" }, node.name)));
  const svg = drawing("svg", { role: "listbox", "aria-label": `${input.name}: arrow keys follow the strongest edges, plus and minus zoom` },
    drawing("g", { role: "presentation" }, ...edges.map((edge) => edge.line)), ...nodes);
  const all = box();
  let view = [...all];
  let here = 0;
  show(all);

  function describe(number) {
    return `${input.nodes[number].name}: ${signed(relevance[number])}`;
  }

  function box() {
    const [xs, ys] = [0, 1].map((axis) => at.map((place) => place[axis]));
    const [left, top] = [Math.min(...xs) - 70, Math.min(...ys) - 30];
    return [left, top, Math.max(...xs) + 70 - left, Math.max(...ys) + 40 - top];
  }

  function show(next) {
    view = next;
    svg.setAttribute("viewBox", view.join(" "));
  }

  // Zoom around a point, given as fractions of the view.
  function zoom(factor, x = 0.5, y = 0.5) {
    const [left, top, width, height] = view;
    show([left + width * x * (1 - factor), top + height * y * (1 - factor), width * factor, height * factor]);
  }

  function colour() {
    const table = panel.table();
    const rgb = (number) => `rgb(${table[number].join(", ")})`;
    const style = getComputedStyle(panel.node);
    const largest = largestOf({ values: relevance, special: null }, "graph");
    const widest = largestOf({ values: edges.map((edge) => edge.weight), special: null }, "graph");
    nodes.forEach((node, number) => {
      const [circle, text] = node.children;
      circle.setAttribute("fill", rgb(step(relevance[number], largest, table)));
      circle.setAttribute("stroke", style.color);
      text.setAttribute("fill", style.color);
    });
    for (const { from, to, weight, line } of edges) {
      const share = Math.abs(weight) / widest;
      const away = here !== null && svg.contains(document.activeElement) && from !== here && to !== here;
      line.setAttribute("stroke", rgb(step(Math.sign(weight) * (0.25 + 0.75 * share), 1, table)));
      line.setAttribute("stroke-width", 0.8 + 5 * share);
      line.setAttribute("stroke-opacity", away ? 0.15 : 1);
      line.setAttribute("visibility", isShown(weight, widest, panel.settings) ? "visible" : "hidden");
    }
    legend.draw(largest, false);
  }

  function look(number) {
    const sum = (chosen) => signed(edges.filter(chosen).reduce((total, edge) => total + edge.weight, 0));
    readout(`${describe(number)}  \u00b7  ${percent(relevance[number], panel.value())}  \u00b7  in ${sum((e) => e.to === number)}, out ${sum((e) => e.from === number)}`);
  }

  function arrive(number) {
    nodes[here].setAttribute("tabindex", -1);
    nodes[here].setAttribute("aria-selected", false);
    nodes[here].firstChild.setAttribute("stroke-width", 1);
    here = number;
    nodes[here].setAttribute("tabindex", 0);
    nodes[here].setAttribute("aria-selected", true);
    nodes[here].firstChild.setAttribute("stroke-width", 4);
    look(here);
    colour();
  }

  function strongest(side, other) {
    const listed = edges.filter((edge) => edge[side] === here).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return listed.length ? listed[0][other] : here;
  }

  function beside(direction) {
    const { x, y } = input.nodes[here];
    const listed = input.nodes.map((node, number) => ({ ...node, number })).filter((node) => node.x === x && (node.y - y) * direction > 0);
    return listed.sort((a, b) => (a.y - b.y) * direction)[0]?.number ?? here;
  }

  const keys = {
    ArrowRight: () => nodes[strongest("from", "to")].focus(), ArrowLeft: () => nodes[strongest("to", "from")].focus(),
    ArrowDown: () => nodes[beside(1)].focus(), ArrowUp: () => nodes[beside(-1)].focus(),
    "+": () => zoom(0.8), "-": () => zoom(1.25), "0": () => show([...all]),
  };
  const numberOf = (event) => nodes.indexOf(event.target.closest?.("[role=option]"));
  svg.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    keys[event.key]();
    event.preventDefault();
  });
  svg.addEventListener("focusin", (event) => { if (numberOf(event) >= 0) arrive(numberOf(event)); });
  svg.addEventListener("focusout", () => setTimeout(colour));
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

  const button = (text, label, click) => element("button", { type: "button", "aria-label": label, click }, text);
  const tools = [["+", "closer", keys["+"]], ["\u2212", "farther", keys["-"]], ["all", "all of it", keys["0"]]];
  return {
    node: element("div", { class: "graph" }, element("div", { class: "tools" }, ...tools.map((tool) => button(...tool))), svg, legend.node),
    colour,
    chosen: () => ({ amount: 0, count: 0 }),
  };
}

function curve([x1, y1], [x2, y2]) {
  const middle = (x1 + x2) / 2;
  return `M${x1},${y1} C${middle},${y1} ${middle},${y2} ${x2},${y2}`;
}
