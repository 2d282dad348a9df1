// A text with coloured words or pieces, which can be chosen; a new word of a generated text selects its target.

import { element, readout, visible } from "./dom.js";
import { createLegend } from "./legend.js";
import { percent, signed, sumOfRows } from "./numbers.js";
import { isShown, pictured, step } from "./scale.js";
import { unitsOf } from "./units.js";

// Chosen positions survive the change from words to pieces within one sample.
const chosenOf = new WeakMap();

export function createText(panel, input) {
  const units = unitsOf(input, panel.settings.unit);
  if (!chosenOf.has(input)) chosenOf.set(input, new Set());
  const chosen = chosenOf.get(input);
  const legend = createLegend(panel);
  const box = element("div", { class: "text", role: "listbox", "aria-multiselectable": "true", "aria-label": label() });
  const chips = units.texts.map(chip);
  let at = 0; // the chip with the keyboard focus
  let anchor = 0; // the first chip of a range of chosen ones
  let values = [];
  if (chips.length) chips[0].tabIndex = 0;
  units.texts.forEach((_, number) => {
    if (units.breaks.has(number)) box.append(element("span", { class: "break", role: "presentation" }));
    box.append(chips[number], units.joined.has(number + 1) ? "" : " ");
  });

  function label() {
    return `${input.name}: ${panel.settings.unit} with their relevance`;
  }

  function chip(text, number) {
    const node = element("span", { role: "option", tabindex: "-1", "aria-selected": String(isChosen(number)) }, visible(text));
    node.number = number;
    return node;
  }

  function isChosen(number) {
    return units.positions[number].every((position) => chosen.has(position));
  }

  function colour() {
    const picture = pictured(input, panel.rows(), panel.settings.unit);
    const largest = panel.largest("tokens");
    const table = panel.table();
    const current = new Set(panel.rows());
    values = picture.values;
    chips.forEach((node, number) => {
      const value = values[number];
      const classes = ["chip"];
      if (units.special.has(number)) classes.push("special");
      else classes.push(isShown(value, largest, panel.settings) ? `s${step(value, largest, table)}` : "off");
      if (units.joined.has(number)) classes.push("joined");
      if (units.rows[number].length) classes.push("new");
      if (units.rows[number].some((row) => current.has(row))) classes.push("target");
      const name = classes.join(" ");
      if (node.className !== name) node.className = name;
    });
    legend.node.hidden = chips.every((_, number) => units.special.has(number));
    legend.draw(largest, false);
  }

  function describe(number) {
    const text = units.texts[number].trim() || "a blank";
    return `${text}: ${signed(values[number])}`;
  }

  function look(number) {
    if (units.rows[number].length) panel.show(units.rows[number]);
    const part = percent(values[number], panel.value());
    readout(`${describe(number)}  \u00b7  ${part}  \u00b7  ${number + 1} of ${chips.length}`);
  }

  function go(number) {
    chips[Math.max(0, Math.min(chips.length - 1, number))].focus();
  }

  function arrive(number) {
    chips[at].tabIndex = -1;
    at = number;
    chips[at].tabIndex = 0;
    look(at);
    chips[at].setAttribute("aria-label", describe(at));
  }

  function choose(numbers, on) {
    for (const number of numbers) {
      for (const position of units.positions[number]) on ? chosen.add(position) : chosen.delete(position);
      chips[number].setAttribute("aria-selected", String(on));
    }
    panel.choose();
  }

  function chooseTo(number) {
    const ends = [anchor, number].sort((a, b) => a - b);
    choose(chips.map((_, n) => n).slice(ends[0], ends[1] + 1), true);
  }

  function toggle(number) {
    anchor = number;
    choose([number], !isChosen(number));
  }

  function keep(number) {
    units.rows[number].length ? panel.pin(units.rows[number]) : toggle(number);
  }

  // The chip above or below: the nearest one in the next line.
  function vertical(direction) {
    const here = chips[at];
    for (let n = at + direction, best = -1, line = null; n >= 0 && n < chips.length; n += direction) {
      const top = chips[n].offsetTop;
      if (line === null && Math.abs(top - here.offsetTop) > 4) line = top;
      if (line === null) continue;
      const distance = (m) => Math.abs(chips[m].offsetLeft - here.offsetLeft);
      if (Math.abs(top - line) > 4) return best;
      if (best < 0 || distance(n) < distance(best)) best = n;
      if (n + direction < 0 || n + direction >= chips.length) return best;
    }
    return at;
  }

  const moves = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => vertical(1), ArrowUp: () => vertical(-1),
    Home: () => 0, End: () => chips.length - 1,
  };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) {
      if (event.shiftKey && !isChosen(at)) anchor = at;
      go(moves[event.key]());
      if (event.shiftKey) chooseTo(at);
    } else if (event.key === " ") toggle(at);
    else if (event.key === "Enter") keep(at);
    else if (event.key === "Escape") clear();
    else return;
    event.preventDefault();
  }

  function clear() {
    choose(chips.map((_, number) => number), false);
  }

  const numberOf = (event) => event.target.closest?.("[role=option]")?.number;
  box.addEventListener("keydown", key);
  box.addEventListener("pointerover", (event) => { const n = numberOf(event); if (n !== undefined) look(n); });
  box.addEventListener("pointerleave", () => panel.show(null));
  box.addEventListener("focusout", () => panel.show(null));
  box.addEventListener("focusin", (event) => {
    const number = numberOf(event);
    if (number !== undefined) arrive(number);
  });
  box.addEventListener("click", (event) => {
    const number = numberOf(event);
    if (number === undefined) return;
    go(number);
    if (event.shiftKey) chooseTo(number);
    else if (event.ctrlKey || event.metaKey) toggle(number);
    else keep(number);
  });

  return {
    node: element("div", {}, ...(panel.sample.inputs.length > 1 ? [element("h3", {}, input.name)] : []), box, legend.node),
    colour,
    chosen: () => {
      const all = sumOfRows(input.relevance, panel.rows());
      let amount = 0;
      for (const position of chosen) amount += all[position];
      return { amount, count: chosen.size ? chips.filter((_, n) => isChosen(n)).length : 0 };
    },
  };
}
