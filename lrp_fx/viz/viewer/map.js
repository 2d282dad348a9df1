// Relevance of an image, over the image or alone.

import { choice, element, labelled } from "./dom.js";
import { createGrid } from "./grid.js";
import { createLegend } from "./legend.js";
import { percent, signed, sumOfRows } from "./numbers.js";
import { largestOf } from "./scale.js";

export function createMap(panel, input) {
  const [, height, width] = input.relevance.shape;
  const legend = createLegend(panel);
  const slider = element("input", { type: "range", min: 0, max: 100, value: 55, input: colour });
  let values = [];
  let side = 1; // pixels of a cell's side
  const sides = [1, 2, 4, 8, 16, 32].filter((size) => size === 1 || 4 * size <= Math.min(width, height));
  const cells = choice(sides.map((size) => [size, size === 1 ? "pixels" : `${size} by ${size}`]), 1, (size) => { side = Number(size); colour(); });
  const describe = (x, y) => `${input.name} at row ${input.upwards ? height - y : y + 1}, column ${x + 1}: ${signed(values[y * width + x])}  \u00b7  ${percent(values[y * width + x], panel.value())}`;
  const name = `relevance of ${input.name}, ${height} rows by ${width} columns: arrow keys move, shift and arrow keys choose`;
  const grid = createGrid({ name, describe, choose: panel.choose });
  let picture = null;
  if (input.picture) {
    picture = element("img", { src: input.picture, alt: "", load: colour });
  }

  function colour() {
    const pixels = sumOfRows(input.relevance, panel.rows());
    const sums = side === 1 ? pixels : overCells(pixels, width, height, side);
    values = sums;
    const largest = side === 1 ? panel.largest("map") : largestOf({ values: sums }, "map");
    const drawn = picture?.complete ? picture : null;
    grid.draw(pixels, sums, width, height, { largest, table: panel.table(), settings: panel.settings, picture: drawn, overlay: slider.value / 100 });
    legend.draw(largest, true);
  }

  return {
    node: element("div", { class: "map" },
      element("h3", {}, input.name + (input.caption ? ` (${input.caption})` : "")), grid.node,
      element("div", { class: "tools" }, ...(picture ? [labelled("Picture or relevance", slider)] : []),
        ...(sides.length > 1 ? [labelled("Summed over", cells)] : [])), legend.node),
    colour,
    chosen: () => ({ amount: grid.sum(), count: grid.count() }),
  };
}

// For every pixel, the sum over its square cell.
function overCells(values, width, height, side) {
  const across = Math.ceil(width / side);
  const cellOf = (i) => Math.floor(i / width / side) * across + Math.floor((i % width) / side);
  const sums = new Float64Array(across * Math.ceil(height / side));
  values.forEach((value, i) => { sums[cellOf(i)] += value; });
  return Float64Array.from(values, (_, i) => sums[cellOf(i)]);
}
