// Words or pieces of words: what a text is shown as.

const made = new WeakMap();

// of: number of the unit of every token, -1 for padding; joined: units that continue the word of the unit before;
// rows: of a generated text, the targets that a unit is.
export function unitsOf(input, unit) {
  if (!made.has(input)) made.set(input, {});
  const units = made.get(input);
  units[unit] ??= withRows(input, unit === "words" ? words(input) : pieces(input));
  return units[unit];
}

// The targets of a sample as they are shown: one by one, or of a generated text those of a word together.
export function targetsOf(sample, unit) {
  const written = sample.inputs.find((i) => i.start !== undefined);
  if (!written) return sample.targets.map((_, row) => [row]);
  return unitsOf(written, unit).rows.filter((rows) => rows.length);
}

function words({ words: { of, texts, special, breaks } }) {
  return { of, texts, special: new Set(special), breaks: new Set(breaks), joined: new Set() };
}

function pieces({ tokens, special, breaks, words: { of } }) {
  const unit = { of: [], texts: [], special: new Set(), breaks: new Set(), joined: new Set() };
  const among = { special: new Set(special), breaks: new Set(breaks) };
  tokens.forEach((text, position) => {
    const number = of[position] < 0 ? -1 : unit.texts.push(text) - 1;
    unit.of.push(number);
    if (number < 0) return;
    for (const name of ["special", "breaks"]) if (among[name].has(position)) unit[name].add(number);
    if (position && of[position] === of[position - 1]) unit.joined.add(number);
  });
  return unit;
}

function withRows(input, unit) {
  const positions = unit.texts.map(() => []);
  unit.of.forEach((number, position) => { if (number >= 0) positions[number].push(position); });
  const last = input.start + input.relevance.shape[0];
  const isNew = (position) => position >= input.start && position < last; // never so where nothing was generated
  const rows = positions.map((listed) => listed.filter(isNew).map((position) => position - input.start));
  return { ...unit, positions, rows };
}
