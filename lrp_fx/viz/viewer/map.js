// Relevance of an image over the image, or a map of its own.

import { element, labelled } from "./dom.js";
import { createGrid } from "./grid.js";
import { createLegend } from "./legend.js";
import { percent, signed, sumOfRows } from "./numbers.js";

export function createMap(panel, input) {
  const [, height, width] = input.relevance.shape;
  const legend = createLegend(panel);
  const slider = element("input", { type: "range", min: 0, max: 100, value: 55, input: colour });
  let values = [];
  const told = (x, y) => `${input.name} at row ${y + 1}, column ${x + 1}: ${signed(values[y * width + x])}  \u00b7  ${percent(values[y * width + x], panel.value())}`;
  const name = `relevance of ${input.name}, ${height} rows by ${width} columns: arrow keys move, shift and arrow keys choose`;
  const grid = createGrid({ name, told, choose: panel.choose });
  let picture = null;
  if (input.picture) {
    picture = element("img", { src: input.picture, alt: "", load: colour });
  }

  function colour() {
    values = sumOfRows(input.relevance, panel.rows());
    const largest = panel.largest("map");
    const drawn = picture?.complete ? picture : null;
    grid.draw(values, width, height, { largest, table: panel.table(), settings: panel.settings, picture: drawn, overlay: slider.value / 100 });
    legend.draw(largest, true);
  }

  return {
    node: element("div", { class: "map" },
      element("h3", {}, input.name + (input.caption ? ` (${input.caption})` : "")), grid.node,
      ...(picture ? [element("div", { class: "tools" }, labelled("Picture or relevance", slider))] : []), legend.node),
    colour,
    chosen: () => ({ amount: grid.sum(), count: grid.count() }),
  };
}
