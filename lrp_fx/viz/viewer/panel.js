// One result: the explained value, its inputs in colour, its ledger, its layers.

import { choice, element, labelled, say, visible } from "./dom.js";
import { exportButtons } from "./export.js";
import { createGraph } from "./graph.js";
import { createLedger } from "./ledger.js";
import { createMap } from "./map.js";
import { createMatrix } from "./matrix.js";
import { percent, signed, total } from "./numbers.js";
import { colourTable, largestInSample, largestOnPage } from "./scale.js";
import { createSound } from "./sound.js";
import { createText } from "./text.js";
import { targetsOf, unitsOf } from "./units.js";
import { createValues } from "./values.js";

const PICTURES = { tokens: createText, map: createMap, sound: createSound, values: createValues, graph: createGraph };

// `build` fills the panel once it is in the page: pictures ask for the colours of the page.
export function createPanel(page, view, settings) {
  const node = element("section", { "aria-label": `result: ${view.name}` });
  const panel = { node, page, view, settings, sample: null, pinned: [], preview: null, pictures: [], build, colour };

  // The current targets.
  panel.rows = () => panel.preview ?? panel.pinned;
  panel.value = () => total(panel.rows().map((row) => panel.sample.targets[row].value ?? NaN));
  panel.largest = (kind) => settings.scale === "shared"
    ? largestOnPage(page, kind, settings.unit)
    : largestInSample(panel.sample, kind, panel.rows(), settings.unit);
  panel.table = () => colourTable(page);
  panel.pin = (rows) => {
    panel.pinned = rows;
    panel.preview = null;
    colour();
    say(`explained: ${targetName(panel)}, ${signed(panel.value())}`);
  };
  panel.show = (rows) => {
    if (String(rows) === String(panel.preview)) return;
    panel.preview = rows;
    colour();
  };
  panel.chosen = () => ({
    amount: total(panel.pictures.map((picture) => picture.chosen().amount)),
    count: total(panel.pictures.map((picture) => picture.chosen().count)),
  });
  panel.choose = () => {
    panel.ledger.draw();
    const { amount, count } = panel.chosen();
    say(count ? `${count} chosen: ${signed(amount)}, ${percent(amount, panel.value())}` : "nothing chosen");
  };

  function build() {
    panel.sample = view.samples[view.samples.length === 1 ? 0 : settings.sample];
    panel.preview = null;
    const heading = element("h2", { class: page.views.length > 1 ? false : "unseen" }, view.name);
    if (!panel.sample) {
      node.replaceChildren(heading, element("p", {}, "This result has no such sample."));
      return;
    }
    const { inputs, matrices, notes } = panel.sample;
    panel.pinned = targetsOf(panel.sample, settings.unit)[0] ?? [];
    panel.pictures = inputs.map((input) => PICTURES[input.kind](panel, input));
    panel.matrices = matrices.map((matrix) => createMatrix(panel, matrix));
    panel.ledger = createLedger(panel);
    panel.explained = element("dd");
    node.replaceChildren(
      heading, facts(panel), ...targetChoice(panel),
      ...(notes.length ? [element("ul", { class: "notes", "aria-label": "notes" }, ...notes.map((n) => element("li", {}, n)))] : []),
      element("div", { class: "pictures" }, ...panel.pictures.map((picture) => picture.node)),
      panel.ledger.node, ...panel.matrices.map((matrix) => matrix.node), exportButtons(node, view.name),
    );
    colour();
  }

  function colour() {
    if (!panel.sample) return;
    panel.explained.textContent = `${targetName(panel)} (${signed(panel.value())})`;
    for (const part of [...panel.pictures, ...panel.matrices]) part.colour();
    panel.ledger.draw();
  }

  return panel;
}

// Name of the explained value: of a target, or of the new word that consists of the targets.
function targetName({ sample, rows, settings }) {
  const written = sample.inputs.find((input) => input.start !== undefined);
  const units = written && unitsOf(written, settings.unit);
  const unit = units ? units.rows.findIndex((listed) => String(listed) === String(rows())) : -1;
  return visible(unit < 0 ? rows().map((row) => sample.targets[row].name).join(" ") : units.texts[unit]);
}

function facts({ view, explained }) {
  const all = [["explained", explained], ...view.facts.map(([name, value]) => [name, element("dd", {}, value)])];
  return element("dl", {}, ...all.map(([name, value]) => element("div", {}, element("dt", {}, name), value)));
}

// Choice of one of several targets; in a generated text by pointing at it.
function targetChoice(panel) {
  const { inputs, targets } = panel.sample;
  if (inputs.some((input) => input.start !== undefined)) {
    const hint = "Point at a new token, or go to it with the arrow keys, to see its explanation; click or Enter keeps it.";
    return [element("p", { class: "hint" }, hint)];
  }
  if (targets.length < 2) return [];
  const options = targets.map((target, row) => [row, `${target.name} (${signed(target.value)})`]);
  return [element("div", { class: "tools" }, labelled("Explained", choice(options, 0, (row) => panel.pin([Number(row)]))))];
}
