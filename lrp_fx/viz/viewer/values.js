// Numbers with names, such as the columns of a table: a bar for each.

import { element, readout } from "./dom.js";
import { createLegend } from "./legend.js";
import { percent, signed, sumOfRows } from "./numbers.js";
import { isShown, step } from "./scale.js";

export function createValues(panel, input) {
  const body = element("tbody");
  const legend = createLegend(panel);
  const head = ["", ...(input.values ? ["value"] : []), "relevance", ""];
  const table = element("table", {}, element("caption", {}, input.name),
    element("thead", {}, element("tr", {}, ...head.map((text) => text ? element("th", { scope: "col", class: "number" }, text) : element("td")))), body);

  function colour() {
    const values = sumOfRows(input.relevance, panel.rows());
    const largest = panel.largest("values");
    body.replaceChildren(...input.names.flatMap((name, number) =>
      isShown(values[number], largest, panel.settings) ? [line(name, number, values[number], largest)] : []));
    legend.draw(largest, false);
  }

  function line(name, number, value, largest) {
    const bar = element("b", { class: `s${step(value, largest, panel.table())}` });
    const size = Math.min(1, Math.abs(value) / largest) * 50;
    bar.style.left = `${value < 0 ? 50 - size : 50}%`;
    bar.style.width = `${size}%`;
    const cells = input.values ? [element("td", { class: "number" }, input.values[number]?.toPrecision(4) ?? "")] : [];
    return element("tr", { pointerover: () => readout(`${name}: ${signed(value)}  \u00b7  ${percent(value, panel.value())}`) },
      element("th", { scope: "row" }, name), ...cells, element("td", { class: "number" }, signed(value)),
      element("td", {}, element("div", { class: "track", "aria-hidden": "true" }, bar)));
  }

  return { node: element("div", {}, table, legend.node), colour, chosen: () => ({ amount: 0, count: 0 }) };
}
