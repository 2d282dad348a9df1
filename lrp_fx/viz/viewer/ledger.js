// The ledger as a waterfall: the base, then the inputs (chosen ones and the rest), then the explained value.

import { element } from "./dom.js";
import { signed, sumOfRows, total } from "./numbers.js";

const ROUNDING = 1e-5;

export function createLedger(panel) {
  const body = element("tbody");
  const caption = element("caption");
  const head = element("thead", {}, element("tr", {}, ...["where it went", "amount", "from left to right"].map((text, column) =>
    element("th", { scope: "col", class: column === 1 ? "number" : false }, text))));
  const node = element("table", { class: "ledger" }, caption, head, body);

  function draw() {
    const rows = entries(panel);
    caption.textContent = panel.sample.caption ? panel.sample.caption : panel.sample.ledger
      ? "The ledger: every entry is computed on its own; all entries sum to the explained value."
      : `No ledger: ${panel.sample.no_ledger}. The first entry is the rest beside the inputs.`;
    let sum = 0;
    const bars = rows.map(({ amount }) => [sum, (sum += amount)]);
    const all = bars.flat();
    const low = Math.min(0, ...all);
    const width = Math.max(0, ...all) - low || 1;
    body.replaceChildren(
      ...rows.map((row, number) => line(row, bars[number], low, width, panel)),
      line({ name: "explained value", amount: panel.value(), kind: "total" }, [0, panel.value()], low, width, panel),
    );
  }

  return { node, draw };
}

// (name, amount, kind) of every row except the last, which is their sum.
export function entries(panel) {
  const { amount, count } = panel.chosen();
  const ledger = panel.sample.ledger;
  const inputs = total(panel.sample.inputs.map((input) => total(sumOfRows(input.relevance, panel.rows()))));
  const value = panel.value();
  const base = ledger ? ledger.filter(([name]) => name !== "input") : [["all else", value - inputs]];
  const booked = ledger ? ledger.filter(([name]) => name === "input").map((entry) => entry[1]) : [inputs];
  const rows = base.map(([name, part]) => ({ name, amount: part, kind: "base" }));
  if (count) rows.push({ name: `inputs: ${count} chosen`, amount, kind: "chosen" });
  if (booked.length) rows.push({ name: count ? "inputs: the others" : "inputs", amount: total(booked) - amount, kind: "inputs" });
  const left = value - total(rows.map((row) => row.amount));
  const size = Math.max(Math.abs(value), ...rows.map((row) => Math.abs(row.amount)));
  if (Math.abs(left) > ROUNDING * size) rows.push({ name: "not accounted for", amount: left, kind: "base" });
  return rows;
}

function line({ name, amount, kind }, [from, to], low, width, panel) {
  const last = panel.table().length - 1;
  const bar = element("b", { class: kind === "total" ? "sum" : `s${amount >= 0 ? last - 3 : 3}` });
  bar.style.left = `${(100 * (Math.min(from, to) - low)) / width}%`;
  bar.style.width = `${(100 * Math.abs(to - from)) / width}%`;
  return element("tr", { class: kind },
    element("th", { scope: "row" }, name), element("td", { class: "number" }, signed(amount)),
    element("td", {}, element("div", { class: "track", "aria-hidden": "true" }, bar)));
}
