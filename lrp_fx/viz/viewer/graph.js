// A circuit: nodes in layers, edges with a width by their relevance.

import { element, readout } from "./dom.js";
import { createDrawing, path, shape } from "./drawing.js";
import { createLegend } from "./legend.js";
import { numbers, percent, signed } from "./numbers.js";
import { isShown, largestOf, step } from "./scale.js";

const [ACROSS, DOWN, RADIUS] = [170, 46, 9];
const SHAPE = 2; // least width of a graph by its height: columns of a tall one stand further apart

export function createGraph(panel, input) {
  const relevance = numbers(input.relevance);
  const legend = createLegend(panel);
  const across = distance(input.nodes);
  const place = ([x, y]) => [x * across, y * DOWN];
  const edges = input.edges.map(([from, to, weight], number) =>
    ({ from, to, weight, line: shape("path", { d: path(input.ways[number].map(place), false), fill: "none", "vector-effect": "non-scaling-stroke" }) }));
  const describe = (number) => `${input.nodes[number].name}: ${signed(relevance[number])}`;
  const drawing = createDrawing({
    label: `${input.name}: arrow keys follow the strongest edges, plus and minus zoom`,
    places: input.nodes.map(({ x, y }) => place([x, y])),
    lines: [...edges].sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight)).map((edge) => edge.line), // strong ones above weak ones
    draw: (number) => [
      shape("circle", { r: RADIUS, "stroke-width": 1 }),
      shape("text", { y: RADIUS + 12, "text-anchor": "middle", "font-size": 10, "font-family": "sans-serif" }, input.nodes[number].name),
    ],
    describe,
    next: {
      ArrowRight: (here) => strongest(here, "from", "to"), ArrowLeft: (here) => strongest(here, "to", "from"),
      ArrowDown: (here) => beside(here, 1), ArrowUp: (here) => beside(here, -1),
    },
    arrive: (number) => { look(number); colour(); },
    look,
  });

  function colour() {
    const table = panel.table();
    const rgb = (number) => `rgb(${table[number].join(", ")})`;
    const style = getComputedStyle(panel.node);
    const largest = largestOf({ values: relevance, special: null }, "graph");
    const widest = largestOf({ values: edges.map((edge) => edge.weight), special: null }, "graph");
    const here = drawing.here();
    drawing.nodes.forEach((node, number) => {
      const [circle, text] = node.children;
      circle.setAttribute("fill", rgb(step(relevance[number], largest, table)));
      circle.setAttribute("stroke", style.color);
      circle.setAttribute("stroke-width", number === here ? 4 : 1);
      text.setAttribute("fill", style.color);
    });
    for (const { from, to, weight, line } of edges) {
      const share = Math.abs(weight) / widest;
      const away = here !== null && from !== here && to !== here;
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

  function strongest(here, side, other) {
    const listed = edges.filter((edge) => edge[side] === here).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return listed.length ? listed[0][other] : here;
  }

  function beside(here, direction) {
    const { x, y } = input.nodes[here];
    const listed = input.nodes.map((node, number) => ({ ...node, number })).filter((node) => node.x === x && (node.y - y) * direction > 0);
    return listed.sort((a, b) => (a.y - b.y) * direction)[0]?.number ?? here;
  }

  drawing.svg.addEventListener("focusout", () => setTimeout(colour));
  return {
    node: element("div", { class: "graph" }, element("div", { class: "tools" }, ...drawing.buttons), drawing.svg, legend.node),
    colour,
    chosen: () => ({ amount: 0, count: 0 }),
  };
}

// Between two columns.
function distance(nodes) {
  const extent = (axis) => nodes.reduce((most, node) => Math.max(most, node[axis]), -Infinity) - nodes.reduce((least, node) => Math.min(least, node[axis]), Infinity);
  return Math.max(ACROSS, SHAPE * DOWN * extent("y") / Math.max(1, extent("x")));
}
