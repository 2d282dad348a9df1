// Settings of the whole page: sample, words or pieces, scale, filter.

import { choice, element, labelled } from "./dom.js";

export function createSettings(form, page, { rebuild, recolour }) {
  const settings = { sample: 0, unit: "words", scale: "own", sign: "both", floor: 0 };
  const set = (name, then, read = (value) => value) => (value) => { settings[name] = read(value); then(); };
  const samples = page.views.flatMap((view) => view.samples);
  const longest = page.views.reduce((a, b) => (b.samples.length > a.samples.length ? b : a));
  form.addEventListener("submit", (event) => event.preventDefault());
  if (longest.samples.length > 1) {
    const names = longest.samples.map((sample, number) => [number, sample.name]);
    form.append(labelled("Sample", choice(names, 0, set("sample", rebuild, Number))));
  }
  if (samples.some((sample) => sample.inputs.some((input) => input.kind === "tokens"))) {
    form.append(labelled("Text as", choice([["words", "words"], ["pieces", "pieces"]], "words", set("unit", rebuild))));
  }
  const scales = [["own", "per sample"], ["shared", "shared by all"]];
  const signs = [["both", "for and against"], ["for", "for"], ["against", "against"]];
  const floor = element("input", { type: "range", min: 0, max: 100, value: 0 });
  const percentage = element("output", {}, "0%");
  floor.addEventListener("input", () => {
    percentage.textContent = `${floor.value}%`;
    set("floor", recolour)(floor.value / 100);
  });
  form.append(
    labelled("Scale", choice(scales, "own", set("scale", recolour))),
    labelled("Show", choice(signs, "both", set("sign", recolour))),
    labelled("From this share of the largest on", floor), percentage,
  );
  return settings;
}
