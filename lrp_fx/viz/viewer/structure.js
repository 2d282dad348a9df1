// A model's graph: the role and rule of every node, with a search. The page's data: nodes, edges.

import { element, readout, say } from "./dom.js";
import { createDrawing, path, shape } from "./drawing.js";

const [ACROSS, DOWN, WIDTH, HEIGHT] = [190, 62, 170, 40];
const LONGEST = 22; // letters in a box
const FIELDS = ["name", "op", "module", "role", "rule", "source"];

function showStructure() {
  const { nodes, edges, label } = JSON.parse(document.getElementById("data").textContent);
  const place = ([x, y]) => [y * ACROSS, x * DOWN]; // layers run down the page
  const search = element("input", { type: "search", size: 28, id: "search" });
  const count = element("output", { for: "search" });
  const details = element("dl", { class: "details" });
  const lines = edges.map(([from, to, way]) => shape("path", { class: "edge", d: path(between(way.map(place)), true), "data-from": from, "data-to": to }));
  const text = nodes.map((node) => FIELDS.map((field) => node[field]).join(" ").toLowerCase());
  let matches = [];
  let latest = -1; // index in `matches`

  const drawing = createDrawing({
    label, lines, look,
    places: nodes.map(({ x, y }) => place([x, y])),
    draw: (number) => [
      shape("rect", { class: nodes[number].kind, x: -WIDTH / 2, y: -HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: 6 }),
      shape("text", {}, shape("tspan", { x: 0, y: -4 }, shown(nodes[number])[0]), " ", shape("tspan", { x: 0, y: 12, class: "below" }, shown(nodes[number])[1])),
    ],
    describe: (number) => `${shown(nodes[number]).join(" ")}: ${describe(nodes[number])}`, // begins with what is seen
    next: {
      ArrowDown: (here) => first(here, 0, 1), ArrowUp: (here) => first(here, 1, 0),
      ArrowRight: (here) => beside(here, 1), ArrowLeft: (here) => beside(here, -1),
    },
    arrive: (number) => { look(number); tell(number); mark(number); },
  });

  function tell(number) {
    const linked = (side, other) => edges.filter((edge) => edge[side] === number).map((edge) =>
      element("button", { type: "button", click: () => drawing.go(edge[other]) }, nodes[edge[other]].name));
    const rows = [...FIELDS.map((field) => [field, [nodes[number][field]]]), ["takes", linked(1, 0)], ["feeds", linked(0, 1)]];
    details.replaceChildren(...rows.filter(([, listed]) => listed.length && listed[0] !== "").map(([name, listed]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, ...listed))));
  }

  function look(number) { readout(describe(nodes[number])); }

  function mark(number) {
    for (const line of lines) line.classList.toggle("here", Number(line.dataset.from) === number || Number(line.dataset.to) === number);
  }

  // The first node that an edge leads to, from one end of it to the other.
  function first(here, side, other) { return edges.find((edge) => edge[side] === here)?.[other] ?? here; }

  function beside(here, direction) {
    const { x, y } = nodes[here];
    const listed = nodes.map((node, number) => ({ ...node, number })).filter((node) => node.x === x && (node.y - y) * direction > 0);
    return listed.sort((a, b) => (a.y - b.y) * direction)[0]?.number ?? here;
  }

  function find() {
    const query = search.value.trim().toLowerCase();
    matches = query ? text.flatMap((words, number) => (query.split(/\s+/).every((word) => words.includes(word)) ? [number] : [])) : [];
    latest = -1;
    drawing.nodes.forEach((node, number) => node.classList.toggle("off", Boolean(query) && !matches.includes(number)));
    count.textContent = query ? `${matches.length} of ${nodes.length} nodes` : "";
  }

  search.addEventListener("input", find);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !matches.length) return;
    latest = (latest + (event.shiftKey ? matches.length - 1 : 1)) % matches.length;
    const number = matches[latest];
    drawing.show(around(number));
    look(number);
    tell(number);
    mark(number);
    say(`${latest + 1} of ${matches.length}: ${describe(nodes[number])}`);
    count.textContent = `${latest + 1} of ${matches.length}`;
    event.preventDefault();
  });

  // A view of readable size with a node in its middle.
  function around(number) {
    const { width, height } = drawing.svg.getBoundingClientRect();
    const [x, y] = place([nodes[number].x, nodes[number].y]);
    return [x - width / 2, y - height / 2, width, height];
  }

  document.getElementById("graph").replaceChildren(
    element("div", { class: "tools" }, element("label", { for: "search" }, "Find"), search, count, ...drawing.buttons),
    element("div", { class: "graph structure" }, drawing.svg), details);
  const middle = nodes.find(({ kind }) => kind === "source") ?? nodes[0];
  if (middle) drawing.show(start(drawing.all, drawing.svg.getBoundingClientRect(), place([middle.x, middle.y])));
  for (const link of document.querySelectorAll("[data-node]")) {
    link.addEventListener("click", () => { drawing.show(around(Number(link.dataset.node))); drawing.go(Number(link.dataset.node)); });
  }
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
}

// The whole graph if it is readable so, otherwise its beginning, with what is explained in the middle.
function start(all, { width, height }, [x]) {
  const [, top, wide, high] = all;
  return Math.max(wide / width, high / height) <= 1.5 ? all : [x - width / 2, top, width, height];
}

// A way that bends between layers only: it leaves a box at its lower side, and passes straight by the boxes of a layer.
function between(points) {
  return points.flatMap(([x, y]) => [[x, y - HEIGHT / 2], [x, y + HEIGHT / 2]]).slice(1, -1);
}

// The two lines in a box.
const shown = ({ op, role, rule, kind }) => [op, kind === "stop" ? role : rule || role].map(short);
const describe = ({ name, op, module, role, rule }) => `${name}  \u00b7  ${op}  \u00b7  ${role}${rule ? `, ${rule}` : ""}  \u00b7  ${module}`;
const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}\u2026` : text);

showStructure();
