// The page's data: numbers in base64, decoded when a step is shown.

const page = JSON.parse(document.getElementById("data").textContent);
const labels = new Map(idsOf(page).map((id, n) => [id, page.labels[n]]));
const unpacked = new Map();

function idsOf({ ids, labels }) {
  return ids === null ? labels.map((_, id) => id) : [...numbers(ids, Uint32Array)];
}

function numbers(text, Type) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = characters.charCodeAt(n);
  return new Type(bytes.buffer);
}

// A step's logits in descending order with their ids, the groups of the rest, and what its heads did.
function stepAt(index) {
  if (!unpacked.has(index)) {
    unpacked.clear(); // one step at a time is enough to keep
    unpacked.set(index, unpack(page.steps[index], page.prompt.length + index));
  }
  return unpacked.get(index);
}

function unpack(step, length) {
  const { logits, ids } = sorted(step.logits);
  return { ...step, logits, ids, rest: groups(step.logits.rest), heads: headsOf(step.heads, length) };
}

// Logits have 24 bits: about 1e-6 of their range.
function sorted({ ids, codes, low, scale }) {
  const bytes = numbers(codes, Uint8Array);
  const values = Float64Array.from({ length: bytes.length / 3 }, (_, n) =>
    low + (bytes[3 * n] + 256 * bytes[3 * n + 1] + 65536 * bytes[3 * n + 2]) * scale);
  const own = ids === null ? Uint32Array.from(values, (_, id) => id) : numbers(ids, Uint32Array);
  const order = Uint32Array.from(values, (_, n) => n).sort((a, b) => values[b] - values[a] || own[a] - own[b]);
  return { logits: Float64Array.from(order, (n) => values[n]), ids: Uint32Array.from(order, (n) => own[n]) };
}

function groups(rest) {
  if (rest === null) return [];
  const means = numbers(rest.means, Float32Array);
  const variances = numbers(rest.variances, Float32Array);
  return [...numbers(rest.counts, Uint32Array)].map((count, n) => ({ count, mean: means[n], variance: variances[n] }));
}

// Heads in the order of their layers; each has its weights and contributions by position.
function headsOf(heads, length) {
  if (heads === null) return [];
  const weights = numbers(heads.weights, Uint16Array);
  const added = numbers(heads.contributions, Int16Array);
  const perLayer = weights.length / length / heads.layers.length;
  return Array.from({ length: weights.length / length }, (_, n) => ({
    layer: heads.layers[Math.floor(n / perLayer)],
    head: n % perLayer,
    weights: Array.from(weights.subarray(n * length, (n + 1) * length), (weight) => weight / 65535),
    contributions: Array.from(added.subarray(n * length, (n + 1) * length), (part) => (part / 32767) * heads.largest),
  }));
}
