// Relevance inside the model: a row for each layer or head, a column for each token.

import { element, labelled, visible } from "./dom.js";
import { createGrid } from "./grid.js";
import { createLegend } from "./legend.js";
import { signed, sumOfRows } from "./numbers.js";
import { largestOf } from "./scale.js";

const ROW = 15; // pixels
const NAMED = 12; // width of a column from which on it has its token above it

export function createMatrix(panel, matrix) {
  const columns = matrix.columns.length;
  const legend = createLegend(panel);
  const width = Math.max(4, Math.min(24, 640 / columns));
  const names = element("ol", { class: "rows" });
  const above = element("ol", { class: "columns", "aria-hidden": "true" }, ...(width < NAMED ? [] : matrix.columns).map(
    (token) => element("li", {}, visible(token))));
  for (const item of above.children) item.style.width = `${width}px`;
  const search = element("input", { type: "search", size: 16, input: colour });
  let rows = []; // indices of the visible rows
  let values = [];
  let largest = 1;
  let scaledFor = null; // the targets of `largest`
  const describe = (x, y) => rows.length
    ? `${matrix.rows[rows[y]]}, ${visible(matrix.columns[x])}: ${signed(values[y * columns + x])}  \u00b7  the row: ${signed(rowSum(y))}`
    : "";
  const grid = createGrid({ name: `${matrix.name}: arrow keys move`, describe });

  function rowSum(y) {
    let sum = 0;
    for (let x = 0; x < columns; x++) sum += values[y * columns + x];
    return sum;
  }

  function colour() {
    const all = sumOfRows(matrix.relevance, matrix.summed ? [0] : panel.rows());
    const query = search.value.toLowerCase();
    rows = matrix.rows.flatMap((name, row) => (name.toLowerCase().includes(query) ? [row] : []));
    values = new Float64Array(rows.length * columns);
    rows.forEach((row, y) => values.set(all.subarray(row * columns, (row + 1) * columns), y * columns));
    if (String(panel.rows()) !== scaledFor) [largest, scaledFor] = [largestOf({ values: all }, "map"), String(panel.rows())];
    names.replaceChildren(...rows.map((row) => element("li", {}, matrix.rows[row])));
    for (const item of names.children) Object.assign(item.style, { height: `${ROW}px`, lineHeight: `${ROW}px` });
    grid.node.hidden = !rows.length;
    if (rows.length) grid.draw(values, values, columns, rows.length, { largest, table: panel.table(), settings: panel.settings });
    Object.assign(grid.canvas.style, { height: `${ROW * rows.length}px`, width: `${width * columns}px` });
    legend.draw(largest, true);
  }

  const heading = `${matrix.name}${matrix.summed ? ", of all targets together" : ""}`;
  return {
    node: element("div", { class: "matrix" }, element("h3", {}, heading),
      element("div", { class: "tools" }, labelled("Rows with", search)),
      element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": matrix.name }, above, names, grid.node), legend.node),
    colour,
  };
}
