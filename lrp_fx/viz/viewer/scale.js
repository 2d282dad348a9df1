// The diverging scale: the step of a number, the number of the full colour, and the filter.

import { grouped, sumOfRows } from "./numbers.js";
import { targetsOf, unitsOf } from "./units.js";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
export const onTheme = (redraw) => dark.addEventListener("change", redraw);
export const colourTable = (page) => page.colours[dark.matches ? "dark" : "light"];

// Index in the table of colours; its middle is 0.
export function step(value, largest, table) {
  const half = (table.length - 1) / 2;
  const share = Math.max(-1, Math.min(1, value / largest));
  return Math.round(half + half * (share || 0));
}

export function isShown(value, largest, settings) {
  if (settings.sign === "for" ? value < 0 : settings.sign === "against" && value > 0) return false;
  return Math.abs(value) >= settings.floor * largest;
}

// Numbers of an input for some targets: one per word, pixel, interval or name; special ones do not set the scale.
export function pictured(input, rows, unit) {
  const values = sumOfRows(input.relevance, rows);
  if (input.kind !== "tokens") return { values, special: null };
  const units = unitsOf(input, unit);
  return { values: grouped(values, units.of, units.texts.length), special: units.special };
}

// The magnitude of the full colour. One pixel in 200 may exceed it, so that outliers do not make a picture pale.
export function largestOf({ values, special }, kind) {
  if (kind === "map" && values.length > 400) {
    const sizes = Float64Array.from(values, Math.abs).filter((v) => v > 0).sort();
    return sizes.length ? sizes[Math.floor(0.995 * (sizes.length - 1))] : 1;
  }
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    if (!(special && special.has(i))) largest = Math.max(largest, Math.abs(values[i]) || 0);
  }
  return largest || 1;
}

// The same for several inputs of one kind, so that they can be compared.
export function largestInSample(sample, kind, rows, unit) {
  const sizes = sample.inputs.filter((i) => i.kind === kind).map((i) => largestOf(pictured(i, rows, unit), kind));
  return Math.max(...sizes);
}

const shared = new Map();

// The same for the whole page: every result, sample and target.
export function largestOnPage(page, kind, unit) {
  const key = `${kind} ${unit}`;
  if (!shared.has(key)) {
    let largest = 0;
    for (const view of page.views) for (const sample of view.samples) for (const rows of targetsOf(sample, unit)) {
      if (sample.inputs.some((i) => i.kind === kind)) largest = Math.max(largest, largestInSample(sample, kind, rows, unit));
    }
    shared.set(key, largest || 1);
  }
  return shared.get(key);
}
