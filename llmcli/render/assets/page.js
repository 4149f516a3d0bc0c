// What the page shows, and how it reacts. All texts of tokens are set as text, never as markup.

const SHOWN = 12; // candidates, besides the drawn and the recorded one
const PARTS = 8; // rows in favor of the token, and against it
const RANGES = { temperature: [0, 2, 0.01], "top-k": [0, 100, 1], "top-p": [0.01, 1, 0.01], "min-p": [0, 0.5, 0.005] };
const HELP = {
  temperature: "below 1 sharper, above 1 flatter; 0 takes the most probable",
  "top-k": "keep the k most probable; 0 is off",
  "top-p": "keep the fewest that reach p together; 1 is off",
  "min-p": "keep what reaches this share of the largest p; 0 is off",
  u: "the random number that draws the token",
};
const order = page.controls.map((control) => control.name);
const recorded = Object.fromEntries(page.controls.map(({ name, value }) => [name, value]));
const values = { ...recorded, u: 0 };
const inputs = {};
let index = 0;
let pinned = 0; // the head that stays selected

const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A token's label in a direction of its own, with fainter signs for spaces.
function label(text, attributes = {}) {
  const made = element("bdi", attributes);
  const parts = /^·+$/.test(text) ? [text] : text.split(/(·+)/);
  for (const part of parts) made.append(part.startsWith("·") && parts.length > 1 ? element("i", {}, part) : part);
  return made;
}

const labelOf = (id) => labels.get(id) ?? `token ${id}`;
const quoted = (id) => `“${labelOf(id)}”`;

function probability(p) {
  if (p === 0) return "0";
  if (p < 0.00005) return p.toExponential(0);
  return p.toFixed(Math.min(4, Math.max(1, page.digits - 1 - Math.floor(Math.log10(p)))));
}

const fixed = (x) => x.toFixed(3).replace("-", "−");
const signed = (x) => (x < 0 ? "" : "+") + fixed(x);
const dataCell = (value, shown, kind = "number") => element("td", { class: kind }, element("data", { value }, shown));

function bar(share, kind = "") {
  const filled = element("span", { class: `fill ${kind}` });
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return element("span", { class: "track", "aria-hidden": "true" }, filled);
}

// --- the text ---

function tokenSpans() {
  return [...$("prompt").children, ...$("generated").children];
}

function buildText() {
  page.prompt.forEach((text, n) => $("prompt").append(label(text, { class: "token", "data-position": n })));
  page.steps.forEach((step, n) => {
    const position = page.prompt.length + n;
    const option = label(labelOf(step.token), { class: "token", role: "option", "data-position": position });
    option.addEventListener("click", () => select(n, true));
    $("generated").append(option);
  });
  for (const span of tokenSpans()) {
    span.addEventListener("pointerenter", () => shadeHeadsBy(Number(span.dataset.position)));
    span.addEventListener("pointerleave", () => shadeHeadsBy(null));
  }
  $("generated").addEventListener("keydown", (event) => {
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: page.steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(to, true);
  });
  $("previous").addEventListener("click", () => select(index - 1));
  $("next").addEventListener("click", () => select(index + 1));
}

function select(to, focus = false) {
  index = Math.min(Math.max(to, 0), page.steps.length - 1);
  const step = stepAt(index);
  const length = page.prompt.length + index;
  tokenSpans().forEach((span, position) => {
    span.classList.toggle("later", position > length);
    if (position < page.prompt.length) return;
    span.setAttribute("aria-selected", position === length);
    span.tabIndex = position === length ? 0 : -1;
    if (focus && position === length) span.focus({ preventScroll: true });
    if (position === length) scrollTo(span);
  });
  $("previous").disabled = index === 0;
  $("next").disabled = index === page.steps.length - 1;
  $("where").replaceChildren(`Token ${index + 1} of ${page.steps.length}: `, label(labelOf(step.token), { class: "chosen" }), step.given ? ", which was given. Below is what the sampler would draw." : "");
  values.u = step.u ?? 0.5;
  pinned = strongestHead(step);
  showControls();
  showDraw();
  showHeads();
  showLens(step);
  showParts(step);
  showTree(step);
  light(null);
}

// Scroll the text, if it is longer than its panel, to a token; the page stays where it is.
function scrollTo(span) {
  const panel = span.closest(".tokens");
  panel.scrollTop = span.offsetTop - panel.offsetTop - (panel.clientHeight - span.offsetHeight) / 2;
}

// Highlight tokens of the text by numbers from -1 to 1, one for each position; null by those of the selected head.
function light(shares, caption) {
  const step = stepAt(index);
  const head = step.heads[pinned];
  if (shares === null && head) {
    shares = head.weights;
    caption = `Highlighted: what head ${nameOf(head)} looks at.`;
  }
  tokenSpans().forEach((span, position) => {
    const share = shares?.[position] ?? 0;
    span.classList.toggle("against", share < 0);
    span.style.setProperty("--share", `${(100 * Math.sqrt(Math.min(1, Math.abs(share)))).toFixed(1)}%`);
  });
  $("lit").textContent = caption ?? "";
}

// --- the sampler ---

function buildControls() {
  for (const name of order) $("sliders").append(control(name, RANGES[name]));
  $("draw-slider").append(control("u", [0, 0.9999, 0.0001]));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => {
    Object.assign(values, recorded, { u: stepAt(index).u ?? 0.5 });
    showControls();
    showDraw();
  });
}

function control(name, [min, max, step]) {
  const id = `control-${name}`;
  const slider = element("input", { type: "range", id, min, max, step, "aria-describedby": `${id}-help` });
  const whole = name === "top-k";
  const exact = element("input", { type: "number", id: `${id}-value`, step: whole ? 1 : "any", "aria-label": `${name}, exact value` });
  inputs[name] = { slider, exact };
  slider.addEventListener("input", () => change(name, Number(slider.value), slider));
  exact.addEventListener("input", () => change(name, exact.value === "" ? NaN : Number(exact.value), exact));
  exact.addEventListener("blur", showControls);
  return element("div", { class: "control" }, element("label", { for: id }, name), exact, slider,
    element("p", { id: `${id}-help`, class: "help" }, HELP[name]));
}

function isValid(name, value) {
  if (!Number.isFinite(value) || value < 0) return false;
  if (name === "top-k") return Number.isInteger(value);
  if (name === "top-p") return value > 0 && value <= 1;
  if (name === "min-p") return value <= 1;
  return name !== "u" || value < 1;
}

function change(name, value, source) {
  const valid = isValid(name, value);
  inputs[name].exact.setAttribute("aria-invalid", !valid);
  if (!valid) return;
  values[name] = value;
  if (source !== inputs[name].exact) inputs[name].exact.value = value;
  if (source !== inputs[name].slider) inputs[name].slider.value = value;
  showDraw();
}

function showControls() {
  for (const [name, { slider, exact }] of Object.entries(inputs)) {
    slider.value = values[name];
    exact.value = values[name];
    exact.setAttribute("aria-invalid", false);
  }
}

const isGreedy = () => values.temperature === 0;

function showDraw() {
  const step = stepAt(index);
  const state = runSampler(step, order, values);
  const drawn = isGreedy() ? 0 : drawnRank(state, values.u);
  const chosenRank = state.ids.indexOf(step.token);
  const ranks = [...new Set([...Array(Math.min(SHOWN, state.ids.length)).keys(), chosenRank, drawn])];
  const rows = ranks.filter((rank) => rank !== null && rank >= 0).sort((a, b) => a - b);
  inputs.u.slider.disabled = inputs.u.exact.disabled = isGreedy();
  const ends = endsOf(state);
  const unfiltered = runSampler(step, order.filter((name) => name === "temperature"), values);
  $("tempered").textContent = `p (T = ${order.includes("temperature") ? values.temperature : 1})`;
  $("candidates").tBodies[0].replaceChildren(
    ...rows.map((rank) => candidateRow(step, state, unfiltered, rank, rank === drawn, ends)),
    restRow(step, state, rows, ends),
  );
  showStrip(state, drawn, ends);
  showOutcome(step, state, drawn);
}

// The upper end of each kept token's interval of u.
function endsOf(state) {
  let sum = 0;
  return Float64Array.from({ length: state.kept }, (_, rank) => (sum += power(state, rank)) / state.total);
}

function ownProbability(step, id, rank) {
  const changed = step.own.changed.find(([other]) => other === id);
  const logit = changed ? changed[1] : step.logits[step.ids.indexOf(id)];
  return Math.exp(logit - step.own.log_total);
}

function candidateRow(step, state, unfiltered, rank, drawn, ends) {
  const id = state.ids[rank];
  const own = ownProbability(step, id);
  const tempered = finalProbability(unfiltered, unfiltered.ids.indexOf(id));
  const final = finalProbability(state, rank);
  const cut = state.stages.find((stage) => rank >= stage.listed)?.name ?? "";
  const marks = [drawn ? "drawn" : "", id === step.token ? "recorded" : "", cut ? "cut" : ""].filter(Boolean);
  const name = element("th", { scope: "row" }, label(labelOf(id)));
  if (drawn) name.append(" ", element("span", { class: "mark" }, isGreedy() ? "chosen" : "drawn"));
  else if (id === step.token) name.append(" ", element("span", { class: "mark" }, step.given ? "given" : "recorded"));
  const interval = rank < state.kept && !isGreedy() ? `${(ends[rank - 1] ?? 0).toFixed(4)}–${ends[rank].toFixed(4)}` : "";
  return element("tr", { class: marks.join(" "), "data-id": id }, name,
    dataCell(own, probability(own)), dataCell(tempered, probability(tempered), "number wide"),
    element("td", {}, cut), dataCell(final, cut ? "" : probability(final)),
    element("td", { class: "picture" }, bar(final)), element("td", { class: "number wide" }, interval));
}

function restRow(step, state, rows, ends) {
  const others = page.vocabulary - rows.length;
  const shown = rows.reduce((sum, rank) => sum + finalProbability(state, rank), 0);
  const kept = Math.max(0, countOf(state) - rows.filter((rank) => rank < state.kept).length);
  const final = kept ? Math.max(0, 1 - shown) : 0;
  return element("tr", { class: "rest" }, element("th", { scope: "row" }, `${others.toLocaleString("en")} others`),
    element("td", {}), element("td", { class: "wide" }), element("td", {}, kept ? `keeps ${kept.toLocaleString("en")}` : ""),
    dataCell(final, final ? probability(final) : ""), element("td", { class: "picture" }, bar(final)), element("td", { class: "wide" }));
}

// The interval from 0 to 1, divided among the kept tokens, with a mark at u.
function showStrip(state, drawn, ends) {
  const parts = [];
  for (let rank = 0; rank < state.kept && (ends[rank - 1] ?? 0) < 0.995 && parts.length < 40; rank++) {
    const width = ends[rank] - (ends[rank - 1] ?? 0);
    const part = element("span", { class: rank === drawn ? "part drawn" : "part" });
    if (width > 0.045) part.append(label(labelOf(state.ids[rank])));
    part.style.width = `${100 * width}%`;
    parts.push(part);
  }
  const mark = element("span", { class: "u" });
  mark.style.left = `${100 * values.u}%`;
  $("strip").replaceChildren(...parts, ...(isGreedy() ? [] : [mark]));
}

function showOutcome(step, state, drawn) {
  const kept = countOf(state);
  const count = kept === 1 ? "1 token is" : `${kept.toLocaleString("en")} tokens are`;
  const how = isGreedy() ? "Temperature 0 takes" : `u = ${values.u.toFixed(4)} draws`;
  const outcome = drawn === null
    ? `u = ${values.u.toFixed(4)} draws one of the tokens that this page does not store.`
    : `${how} ${quoted(state.ids[drawn])}, final p ${probability(finalProbability(state, drawn))}.`;
  $("outcome").textContent = `${count} kept. ${outcome}`;
  const before = page.fixed.length ? [element("li", {}, `before: ${page.fixed.join(", ")}`)] : [];
  $("stages").replaceChildren(...before, ...state.stages.map((stage) =>
    element("li", {}, `${stage.name} ${values[stage.name]}: keeps ${stage.kept.toLocaleString("en")}`)));
  const listed = step.ids.length;
  $("limits").textContent = step.rest.length
    ? `The page stores the ${listed.toLocaleString("en")} most probable tokens one by one. The others are grouped by size: their total is exact to about 1e-4, but not which of them is cut or drawn.`
    : "";
}

// --- attention ---

const nameOf = (head) => `L${head.layer}.H${head.head}`;
const afterFirst = (head) => head.weights.map((weight, position) => (position ? weight : 0));

function largestAt(numbers) {
  return numbers.reduce((best, number, n) => (number > numbers[best] ? n : best), 0);
}

function textAt(position) {
  return position < page.prompt.length ? page.prompt[position] : labelOf(page.steps[position - page.prompt.length].token);
}

// The head that looks most at a single token other than the first.
function strongestHead(step) {
  return largestAt(step.heads.map((head) => Math.max(0, ...afterFirst(head))));
}

function showHeads() {
  const { heads } = stepAt(index);
  $("attention").hidden = heads.length === 0;
  if (!heads.length) return;
  const layers = [...new Set(heads.map((head) => head.layer))];
  const width = heads.length / layers.length;
  const top = element("tr", {}, element("td", {}), ...Array.from({ length: width }, (_, n) => element("th", { scope: "col" }, `H${n}`)));
  const rows = layers.map((layer, row) => element("tr", {}, element("th", { scope: "row" }, `L${layer}`),
    ...heads.slice(row * width, (row + 1) * width).map((head, n) => headCell(head, row * width + n))));
  $("heads").replaceChildren(element("thead", {}, top), element("tbody", {}, ...rows));
  $("heads").onkeydown = (event) => moveInHeads(event, width);
  pin(pinned);
}

function headCell(head, n) {
  const at = largestAt(afterFirst(head));
  const button = element("button", { type: "button", tabindex: -1, "data-head": n },
    label(textAt(at)), element("small", {}, head.weights[at].toFixed(2)));
  button.setAttribute("aria-label", `${nameOf(head)}: ${textAt(at)} ${head.weights[at].toFixed(2)}`);
  button.style.setProperty("--share", `${(100 * head.weights[at]).toFixed(1)}%`);
  for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => lookWith(n));
  for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => lookWith(pinned));
  button.addEventListener("click", () => pin(n));
  return element("td", { role: "gridcell" }, button);
}

function moveInHeads(event, width) {
  const at = Number(event.target.dataset?.head);
  const count = stepAt(index).heads.length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, Home: -(at % width), End: width - 1 - (at % width) }[event.key];
  if (step === undefined || Number.isNaN(at) || at + step < 0 || at + step >= count) return;
  event.preventDefault();
  pin(at + step);
  $("heads").querySelector(`[data-head="${at + step}"]`).focus();
}

function pin(n) {
  pinned = n;
  for (const button of $("heads").querySelectorAll("button")) {
    const own = Number(button.dataset.head) === n;
    button.tabIndex = own ? 0 : -1;
    button.setAttribute("aria-pressed", own);
  }
  lookWith(n);
}

function lookWith(n) {
  const head = stepAt(index).heads[n];
  if (!head) return;
  const top = head.weights.map((weight, position) => [weight, position]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  const parts = top.filter(([weight]) => weight >= 0.01).map(([weight, position]) => `“${textAt(position)}” ${weight.toFixed(2)}`);
  $("looks").textContent = `${nameOf(head)} looks at: ${parts.join(", ")}`;
  light(head.weights, `Highlighted: what head ${nameOf(head)} looks at.`);
}

// Shade the heads by how much they look at one position; null by the token they look at most.
function shadeHeadsBy(position) {
  const { heads } = stepAt(index);
  for (const button of $("heads").querySelectorAll("button")) {
    const head = heads[Number(button.dataset.head)];
    const at = position !== null && position < head.weights.length ? position : largestAt(afterFirst(head));
    button.style.setProperty("--share", `${(100 * head.weights[at]).toFixed(1)}%`);
    button.replaceChildren(label(textAt(at)), element("small", {}, head.weights[at].toFixed(2)));
  }
}

// --- the lens ---

function showLens(step) {
  $("lens-how").textContent = `What the model would predict if it stopped after each layer, and the probability of ${quoted(step.token)}, which was chosen. Rank 0 is the top token.`;
  $("lens-target").replaceChildren("p of ", label(labelOf(step.token)));
  $("layers").tBodies[0].replaceChildren(...step.lens.map(([layer, top, pTop, p, rank, entropy, kl]) =>
    element("tr", { class: top === step.token ? "drawn" : "" }, element("th", { scope: "row" }, layer === null ? "embedding" : `layer ${layer}`),
      element("td", {}, label(labelOf(top))), dataCell(pTop, probability(pTop), "number wide"), dataCell(p, probability(p)),
      element("td", { class: "picture" }, bar(p)), dataCell(rank, rank.toLocaleString("en")),
      dataCell(entropy, entropy.toFixed(2), "number wide"), dataCell(kl, kl.toFixed(2), "number wide"))));
}

// --- the parts of the logit ---

function showParts(step) {
  const total = step.parts.reduce((sum, part) => sum + part[1] - part[2], 0);
  $("parts-how").textContent = `The logit of ${quoted(step.token)} minus that of ${quoted(step.other)} is ${signed(total)}, ${page.softcap ? "before the softcap, " : ""}the sum of what each part of the model adds directly. Select a head to see from which tokens it brings that.`;
  $("parts-token").replaceChildren(label(labelOf(step.token)));
  $("parts-other").replaceChildren(label(labelOf(step.other)));
  const parts = step.parts.map(([name, token, other]) => ({ name, token, other, difference: token - other }));
  const ranked = [...parts].sort((a, b) => b.difference - a.difference);
  const favor = ranked.filter((part) => part.difference > 0).slice(0, PARTS);
  const against = ranked.filter((part) => part.difference < 0).slice(-PARTS);
  const others = parts.filter((part) => !favor.includes(part) && !against.includes(part));
  const shown = [...favor, ...(others.length ? [summed(`${others.length} others`, others)] : []), ...against];
  const longest = Math.max(...shown.map((part) => Math.abs(part.difference)), 1e-9);
  $("sums").tBodies[0].replaceChildren(
    ...shown.flatMap((part) => partRows(step, part, longest)),
    ...partRows(step, summed("total", parts), Infinity), // without a bar
  );
}

function summed(name, parts) {
  const sum = (key) => parts.reduce((total, part) => total + part[key], 0);
  return { name, token: sum("token"), other: sum("other"), difference: sum("difference") };
}

function partRows(step, part, longest) {
  const head = step.heads.find((each) => nameOf(each) === part.name);
  const name = element("th", { scope: "row" }, head ? element("button", { type: "button", "aria-expanded": false }, part.name) : part.name);
  const row = element("tr", { class: part.name === "total" ? "total" : "" }, name, dataCell(part.difference, signed(part.difference)),
    element("td", { class: "picture" }, signedBar(part.difference / longest)),
    dataCell(part.token, fixed(part.token), "number wide"), dataCell(part.other, fixed(part.other), "number wide"));
  if (!head) return [row];
  const sources = sourcesRow(head);
  name.firstChild.addEventListener("click", (event) => {
    const open = sources.hidden;
    sources.hidden = !open;
    event.target.setAttribute("aria-expanded", open);
    lightSources(open ? head : null);
  });
  row.addEventListener("pointerenter", () => lightSources(head));
  row.addEventListener("pointerleave", () => light(null));
  return [row, sources];
}

function lightSources(head) {
  if (head === null) return light(null);
  const largest = Math.max(...head.contributions.map(Math.abs), 1e-9);
  light(head.contributions.map((part) => part / largest), `Highlighted: where head ${nameOf(head)} brings its part from; blue for, orange against.`);
}

function sourcesRow(head) {
  const sources = head.contributions.map((part, position) => [part, position]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const largest = Math.max(Math.abs(sources[0][0]), 1e-9);
  const shown = sources.slice(0, 5).filter(([part], n) => n === 0 || Math.abs(part) >= 0.0005);
  const rest = sources.slice(shown.length).reduce((sum, [part]) => sum + part, 0);
  const line = (name, part) => element("li", {}, element("span", { class: "source" }, name), element("span", { class: "number" }, signed(part)), signedBar(part / largest));
  const list = element("ul", { class: "sources", "aria-label": `${nameOf(head)} by token` },
    ...shown.map(([part, position]) => line(label(textAt(position)), part)),
    ...(sources.length > shown.length ? [line(`${sources.length - shown.length} others`, rest)] : []));
  return Object.assign(element("tr", { class: "detail" }, element("td", { colspan: 5 }, list)), { hidden: true });
}

function signedBar(share) {
  const filled = element("span", { class: share < 0 ? "fill against" : "fill" });
  filled.style.width = `${50 * Math.min(1, Math.abs(share))}%`;
  return element("span", { class: "track signed", "aria-hidden": "true" }, filled);
}

// --- the tree ---

function showTree(step) {
  $("tree").replaceChildren(branchesOf(step.tree, index));
}

// The nodes that may follow; `at` is the step whose chosen token is marked among them, null beside the chosen path.
function branchesOf(nodes, at) {
  return element("ul", {}, ...nodes.map(([id, p, children]) => {
    const chosen = at !== null && page.steps[at]?.token === id;
    const name = element("span", { class: chosen ? "node chosen" : "node" }, label(labelOf(id)), bar(p), element("span", { class: "number" }, probability(p)));
    if (chosen) name.append(" ", element("span", { class: "mark" }, "chosen"));
    return element("li", {}, name, ...(children.length ? [branchesOf(children, chosen ? at + 1 : null)] : []));
  }));
}

// --- the check ---

// The largest difference between the final probabilities that the page computes and the recorded ones, over all steps.
function recomputed() {
  let error = 0;
  let same = true;
  page.steps.forEach((_, n) => {
    const step = stepAt(n);
    const state = runSampler(step, order, recorded);
    for (const [id, p] of step.recorded) error = Math.max(error, Math.abs(finalProbability(state, state.ids.indexOf(id)) - p));
    same &&= step.given || state.ids[step.u === null ? 0 : drawnRank(state, step.u)] === step.token;
  });
  return { error, ok: same && error < 1e-4, same };
}

function showCheck() {
  const { error, ok, same } = recomputed();
  const good = ok && page.check.ok;
  $("check").textContent = `check: ${good ? "ok" : "FAILED"}; this page's sampler ${same ? "draws every recorded token" : "does not draw every recorded token"}, its final p differ by at most ${error.toExponential(0)}; the views' ${page.check.claims.length} claims ${page.check.ok ? "hold" : "do not all hold"}`;
  $("check").className = good ? "" : "failed";
  $("claims").replaceChildren(...page.check.claims.map(({ what, error }) => element("li", {}, `${what} (${error === 0 ? "exact" : `error ${error.toExponential(0)}`})`)));
}

$("command").textContent = page.command;
$("model").textContent = ` · ${page.model} · seed ${page.seed}`;
buildText();
buildControls();
select(0);
showCheck();
