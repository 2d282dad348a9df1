// Looks for faults of accessibility by axe-core, in a document without a browser: node axe.mjs NODE_MODULES PAGE ...
// Writes {page: {passed: [rule, ...], faults: [{id, impact, nodes}, ...]}} as JSON.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [modules, ...pages] = process.argv.slice(2);
const { JSDOM } = createRequire(`${modules}/`)("jsdom");
const axe = await readFile(`${modules}/axe-core/axe.min.js`, "utf8");
const drawsNothing = new Proxy(() => drawsNothing, { get: () => drawsNothing, set: () => true });

// What the pages use of a browser and jsdom does not have. Nothing is drawn, so that contrast is not looked at here.
function complete(window) {
  window.matchMedia = () => ({ matches: false, addEventListener() {} });
  window.performance.mark = () => {};
  window.ImageData = function (width, height) { this.data = new Uint8ClampedArray(4 * width * height); };
  window.HTMLCanvasElement.prototype.getContext = () => drawsNothing;
}

async function examine(page) {
  const { window } = new JSDOM(await readFile(page, "utf8"), { runScripts: "outside-only" });
  complete(window);
  const program = window.document.querySelector("script[type=module]");
  if (program) {
    window.eval(`{${program.textContent}}`);
    if (window.document.documentElement.dataset.ready !== "yes") throw new Error(`the program of ${page} did not start`);
  }
  window.eval(axe);
  const { passes, violations } = await window.axe.run(window.document, { rules: { "color-contrast": { enabled: false } } });
  return {
    passed: passes.map((rule) => rule.id),
    faults: violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map((node) => node.html) })),
  };
}

const examined = {};
for (const page of pages) examined[page] = await examine(page);
console.log(JSON.stringify(examined));
