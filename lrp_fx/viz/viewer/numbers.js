// Packed arrays, sums over them, and numbers as text.

const decoded = new WeakMap();

// The numbers of a packed array, row by row.
export function numbers(packed) {
  if (!decoded.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.float32), (c) => c.charCodeAt(0));
    decoded.set(packed, new Float32Array(bytes.buffer));
  }
  return decoded.get(packed);
}

// Relevance for the sum of some targets: the sum of their rows.
export function sumOfRows(packed, rows) {
  const values = numbers(packed);
  const width = packed.shape.slice(1).reduce((a, b) => a * b, 1);
  if (rows.length === 1) return values.subarray(rows[0] * width, (rows[0] + 1) * width);
  const sums = new Float64Array(width);
  for (const row of rows) for (let i = 0; i < width; i++) sums[i] += values[row * width + i];
  return sums;
}

// Sums over groups; `of` has the group of every value, -1 for none.
export function grouped(values, of, count) {
  const sums = new Float64Array(count);
  for (let i = 0; i < values.length; i++) if (of[i] >= 0) sums[of[i]] += values[i];
  return sums;
}

export function total(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}

export function signed(value) {
  if (value === null || Number.isNaN(value)) return "not a number";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size >= 1e5 || size < 1e-3 ? size.toExponential(2) : size.toPrecision(4);
  return `${value < 0 ? "\u2212" : "+"}${text}`;
}

export function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1).replace("-", "\u2212")}% of the explained value` : "";
}
