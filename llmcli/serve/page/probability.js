// Probabilities as people read them, and their four shades.

const LIMITS = [0.5, 0.1, 0.01];

// 0 for a probability of 50% or more, up to 3 for one below 1%.
export function bucket(p) {
  const at = LIMITS.findIndex((limit) => p >= limit);
  return at < 0 ? LIMITS.length : at;
}

export function percent(p) {
  const share = 100 * p;
  if (share >= 99.95) return share === 100 ? "100%" : "> 99.9%";
  if (share >= 9.95) return `${share.toFixed(1)}%`;
  if (share >= 0.01) return `${share.toPrecision(2)}%`;
  if (share >= 0.0001) return `${share.toFixed(4).replace(/0+$/, "")}%`;
  return p === 0 ? "0%" : `${share.toExponential(0).replace("-", "−")}%`;
}
