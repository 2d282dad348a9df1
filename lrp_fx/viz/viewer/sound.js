// Sound: a player, its waveform on the colours of relevance, its spectrogram.

import { element } from "./dom.js";
import { createGrid } from "./grid.js";
import { createLegend } from "./legend.js";
import { numbers, percent, signed, sumOfRows } from "./numbers.js";

const HEIGHT = 160;

export function createSound(panel, input) {
  const count = input.relevance.shape[1];
  const legend = createLegend(panel);
  const player = input.player ? element("audio", { controls: true, src: input.player, "aria-label": `play ${input.name}` }) : null;
  const wave = element("canvas", { class: "wave", width: count, height: HEIGHT });
  let values = [];
  const seconds = (x) => (input.seconds * x) / count;
  const describe = (x) => `${seconds(x).toFixed(3)} to ${seconds(x + 1).toFixed(3)} s: ${signed(values[x])}  \u00b7  ${percent(values[x], panel.value())}`;
  const name = `relevance of ${input.name} in time: arrow keys move, shift and arrow keys choose`;
  const grid = createGrid({ name, describe, choose: panel.choose });
  grid.node.append(wave);
  grid.node.addEventListener("dblclick", (event) => {
    const { left, width } = grid.canvas.getBoundingClientRect();
    if (player) player.currentTime = (input.seconds * (event.clientX - left)) / width;
  });

  function colour() {
    values = sumOfRows(input.relevance, panel.rows());
    const largest = panel.largest("sound");
    grid.draw(values, values, count, 1, { largest, table: panel.table(), settings: panel.settings });
    drawWave();
    legend.draw(largest, false);
  }

  function drawWave() {
    const [low, high] = [numbers(input.low), numbers(input.high)];
    const loudest = Math.max(...high.map(Math.abs), ...low.map(Math.abs)) || 1;
    const context = wave.getContext("2d");
    const y = (value) => (HEIGHT / 2) * (1 - (0.95 * value) / loudest);
    context.clearRect(0, 0, count, HEIGHT);
    context.fillStyle = getComputedStyle(grid.node).color;
    for (let x = 0; x < count; x++) context.fillRect(x, y(high[x]), 1, Math.max(1, y(low[x]) - y(high[x])));
  }

  const spectrogram = input.spectrogram ? element("img", { src: input.spectrogram, alt: `spectrogram of ${input.name}` }) : "";
  return {
    node: element("div", { class: "sound" }, element("h3", {}, `${input.name}, ${input.seconds.toFixed(2)} s`),
      player ?? "", grid.node, spectrogram, legend.node),
    colour,
    chosen: () => ({ amount: grid.sum(), count: grid.count() }),
  };
}
