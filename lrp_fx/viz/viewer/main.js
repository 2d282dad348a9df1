// Reads the data of the page and draws a panel for each result.

import { onTheme } from "./scale.js";
import { createPanel } from "./panel.js";
import { createSettings } from "./settings.js";

const SCHEMA = 1;

function start() {
  const page = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("views");
  if (page.schema !== SCHEMA) {
    main.replaceChildren(`The data of this page have schema ${page.schema}; its program reads schema ${SCHEMA}.`);
    return;
  }
  const panels = [];
  const settings = createSettings(document.getElementById("settings"), page, {
    rebuild: () => panels.forEach((panel) => panel.build()),
    recolour: () => panels.forEach((panel) => panel.colour()),
  });
  panels.push(...page.views.map((view) => createPanel(page, view, settings)));
  main.replaceChildren(...panels.map((panel) => panel.node));
  panels.forEach((panel) => panel.build());
  onTheme(() => panels.forEach((panel) => panel.colour()));
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
}

start();
