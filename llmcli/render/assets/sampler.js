"use strict";

// The sampler of llmcli: the same filters, in the same order. Temperatures divide in float64 and round to float32, as
// there; probabilities are float64, where llmcli has float32, so they agree to about 1e-7.
//
// All filters here keep the most probable tokens of those before them. So the state of the chain is the logits x in
// descending order, how many of them are kept, and the rest: groups of tokens that are not listed one by one.

const FILTERS = {
  temperature(state, value) {
    const largest = state.x[0];
    if (value === 0) {
      keepListed(state, 1);
      return;
    }
    const inverse = Math.min(1 / value, Number.MAX_VALUE);
    state.x = state.x.map((x) => Math.fround((x - largest) * inverse));
    state.rest = state.rest.map((group) => ({
      count: group.count,
      mean: (group.mean - largest) * inverse,
      variance: group.variance * inverse * inverse,
    }));
    sortTies(state);
  },

  "top-k"(state, value) {
    if (value === 0) return;
    if (value <= state.kept) keepListed(state, value);
    else keepRest(state, value - state.kept, (group) => group.count);
  },

  "top-p"(state, value) {
    if (value === 1) return;
    const total = totalOf(state);
    const target = below(value) * total;
    let sum = 0;
    for (let rank = 0; rank < state.kept; rank++) {
      sum += power(state, rank);
      if (sum > target) {
        keepListed(state, rank + 1);
        return;
      }
    }
    keepRest(state, target - sum, (group) => groupPower(state, group));
  },

  "min-p"(state, value) {
    if (value === 0) return;
    const least = Math.fround(state.x[0] + Math.fround(Math.log(value)));
    let kept = 1;
    while (kept < state.kept && state.x[kept] >= least) kept++;
    if (kept < state.kept) {
      keepListed(state, kept);
      return;
    }
    const groups = state.rest.filter((group) => group.mean >= least);
    if (groups.length < state.rest.length) state.inRest = true;
    state.rest = groups;
  },
};

// Run the filters named in `order` with their `values`. Returns the state, with what each filter kept.
function runSampler(step, order, values) {
  const state = { x: step.logits, ids: step.ids, kept: step.ids.length, rest: step.rest, inRest: false, stages: [] };
  for (const name of order) {
    FILTERS[name](state, values[name]);
    state.stages.push({ name, listed: state.kept, kept: countOf(state) });
  }
  state.total = totalOf(state);
  return state;
}

// The final probability of the token at a rank.
function finalProbability(state, rank) {
  return rank < state.kept ? power(state, rank) / state.total : 0;
}

// The rank of the token whose interval contains u; null if it is one of those that are not listed.
function drawnRank(state, u) {
  const target = u * state.total;
  let sum = 0;
  for (let rank = 0; rank < state.kept; rank++) {
    sum += power(state, rank);
    if (sum > target) return rank;
  }
  return state.rest.length ? null : state.kept - 1;
}

function power(state, rank) {
  return Math.exp(state.x[rank] - state.x[0]);
}

// The sum over a group, to second order in the differences within it.
function groupPower(state, group) {
  return group.count * Math.exp(group.mean - state.x[0]) * (1 + group.variance / 2);
}

function totalOf(state) {
  let sum = 0;
  for (let rank = 0; rank < state.kept; rank++) sum += power(state, rank);
  for (const group of state.rest) sum += groupPower(state, group);
  return sum;
}

function countOf(state) {
  return state.rest.reduce((sum, group) => sum + group.count, state.kept);
}

function keepListed(state, count) {
  state.kept = count;
  state.rest = [];
}

// Keep groups until `amount` is reached, and of the last one a part.
function keepRest(state, amount, measure) {
  const groups = [];
  for (const group of state.rest) {
    const size = measure(group);
    if (size >= amount) {
      groups.push({ ...group, count: Math.max(1, Math.ceil((group.count * amount) / size)) });
      state.inRest = true;
      break;
    }
    amount -= size;
    groups.push(group);
  }
  state.rest = groups;
}

// Logits that rounding has made equal are in the order of their ids.
function sortTies(state) {
  state.ids = state.ids.slice();
  for (let start = 0; start < state.kept; ) {
    let end = start + 1;
    while (end < state.kept && state.x[end] === state.x[start]) end++;
    state.ids.subarray(start, end).sort();
    start = end;
  }
}

// The largest number below a positive one.
function below(value) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  view.setBigUint64(0, view.getBigUint64(0) - 1n);
  return view.getFloat64(0);
}
