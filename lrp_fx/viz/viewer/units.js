// The units of a text: words, or pieces of words.

const unitCache = new WeakMap();

// of: index of the unit of every token, -1 for padding; joined: units that continue the word of the preceding unit;
// rows: in a generated text, the targets of a unit.
export function unitsOf(input, unit) {
  if (!unitCache.has(input)) unitCache.set(input, {});
  const units = unitCache.get(input);
  units[unit] ??= withRows(input, unit === "words" ? words(input) : pieces(input));
  return units[unit];
}

// The targets of a sample in groups: one by one, or in a generated text by word.
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
  const isNew = (position) => position >= input.start && position < last; // (always false without generated tokens)
  const rows = positions.map((listed) => listed.filter(isNew).map((position) => position - input.start));
  return { ...unit, positions, rows };
}
