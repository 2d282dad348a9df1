// The scale under a picture, with the number of the full colour.

import { element } from "./dom.js";
import { signed } from "./numbers.js";

export function createLegend(panel) {
  const low = element("span");
  const high = element("span");
  const strip = element("div", { "aria-hidden": "true" });
  panel.table().forEach((_, number) => strip.append(element("i", { class: `s${number}` })));
  const node = element("div", { class: "legend" }, low, strip, high, element("span", {}, "against / for the answer"));
  function draw(largest, open) {
    low.textContent = `${open ? "\u2264 " : ""}${signed(-largest)}`;
    high.textContent = `${open ? "\u2265 " : ""}${signed(largest)}`;
  }
  return { node, draw };
}
