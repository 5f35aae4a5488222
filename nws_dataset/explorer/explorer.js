// The script of the page: it unpacks the zoo, filters it, draws the points, and lets Vega draw axes and charts.
// Whatever comes from the zoo reaches the page as text of a node, as data of a chart, or as a number.

const TOP = 0xfffe, MISSING = 0xffff; // as in packing.py
const CURVES = 100; // that are drawn at once
const BANDS = 4; // of colours that lie on each other
const WALL = 48; // images side by side
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const GREY = { light: "#9a9a9a", dark: "#777b80" };
const STEPS = 24; // colours of a range of numbers
const LISTED = 24; // categories; more are searched
const OPEN = 3; // filters that are open at first
const MANY = 6000; // points that are squares, which are drawn twice as fast as circles
const LAYERS = 24; // of points: colours lie on each other in turns, so that none hides the others

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

/** An element with text and attributes. */
function element(tag, text = "", attributes = {}, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number with few digits. */
function shown(value) {
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return "n/a";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return number.format(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e5) ? String(Number(value.toPrecision(3)).toExponential()) : String(Number(value.toPrecision(4)));
}

/** A function that runs after a pause, once for many calls. */
function later(milliseconds, run) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
}

// --- the data

async function read(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

const TYPES = { Uint8Array, Uint16Array, Float32Array };

/** The numbers of a packed array. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const values = new TYPES[packed.type](bytes.buffer);
  if (!packed.scale) return values;
  const size = (packed.high - packed.low) / TOP;
  const plain = packed.scale === "log" ? Math.exp : (value) => value;
  return Float32Array.from(values, (code) => (code === MISSING ? NaN : plain(packed.low + code * size)));
}

const zoo = await read($("data").textContent.trim());
const M = zoo.ids.length;
const last = unpack(zoo.last); // of each model on the axis of snapshots
const metrics = zoo.metrics.map((metric) => ({ ...metric, values: unpack(metric.codes) }));
const times = zoo.times.map((time) => ({ ...time, values: unpack(time.values) }));
const S = zoo.metrics[0]?.codes.shape[1] ?? zoo.times[0].values.shape[1];
const fields = zoo.fields.map((field) => ({ ...field, codes: field.codes && unpack(field.codes), numbers: field.numbers && unpack(field.numbers) }));
const fieldOf = new Map(fields.map((field) => [field.name, field]));

/** The value of a field of a model, as text. */
const valueOf = (field, model) => (field.codes ? shown(field.values[field.codes[model]]) : shown(field.numbers[model]));

/** Where a model stands at a snapshot, or at its last one. */
const placeOf = (model, snapshot) => Math.min(snapshot, last[model]);
const timeAt = (time, model, place) => time.values[time.values.length === S ? place : model * S + place];

// What can be on an axis: how it is called, its number for each model, and its categories, if it has some.
const axes = new Map();
const add = (group, name, label, rest) => axes.set(name, { group, name, label, ...rest });
for (const { name, values, codes } of metrics)
  add("Results", name, name, { log: codes.scale === "log", moves: true, of: (m, s) => values[m * S + placeOf(m, s)] });
for (const time of times) add("Results", time.name, time.name, { moves: true, of: (m, s) => timeAt(time, m, placeOf(m, s)) });
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
if (zoo.statistics) {
  const values = unpack(zoo.statistics.coordinates);
  for (const i of [0, 1])
    add("Principal components", `statistics ${i + 1}`, `statistics, PC ${i + 1}`, { share: () => zoo.statistics.shares[i], of: (m) => values[i * M + m] });
}
const fits = zoo.weights.architectures;
if (fits.length) {
  const values = unpack(zoo.weights.coordinates);
  const own = fieldOf.get("architecture");
  for (const i of [0, 1])
    add("Principal components", `weights ${i + 1}`, `weights, PC ${i + 1}`, {
      share: () => fits[state.fit].shares[i],
      ofWeights: true,
      of: (m) => (!own || own.values[own.codes[m]] === fits[state.fit].architecture ? values[i * M + m] : NaN),
    });
}
for (const field of fields) {
  const { name, values, codes, numbers, log } = field;
  if (codes && values.length <= LISTED) add("Recipe", name, name, { values, of: (m) => codes[m] });
  else if (numbers) add("Recipe", name, name, { log, of: (m) => numbers[m] });
}

// --- what the reader has set

const state = {
  x: axes.has(zoo.start.x) ? zoo.start.x : "epoch",
  y: axes.has(zoo.start.y) ? zoo.start.y : "step",
  colour: zoo.start.colour,
  snapshot: S - 1,
  fit: 0,
  metric: metrics[0]?.name,
  time: times.every((time) => time.name !== "epoch" || new Set(time.values).size > 2) ? "epoch" : "step",
  zoomed: false,
  chosen: new Set(),
  active: -1, // the model whose recipe is shown
  cursor: -1, // where the arrow keys are
};
const passes = new Map(); // field -> which models pass its filter, if it has one
let visible = new Uint8Array(M).fill(1);
let numVisible = M;

// --- light and dark

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = dark.matches ? "dark" : "light";
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function setTheme(name) {
  theme = name;
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
}
setTheme(theme);
dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); redrawAll(); });
$("theme").addEventListener("click", () => { setTheme(theme === "dark" ? "light" : "dark"); redrawAll(); });

// --- colours

/** The colour at a share of the way from low to high. Its ends stand out from the page. */
function ramp(share) {
  const [from, to] = theme === "dark" ? [0.25, 1] : [0, 0.88];
  const at = (from + Math.min(1, Math.max(0, share)) * (to - from)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const [a, b] = [VIRIDIS[i], VIRIDIS[i + 1]].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return `rgb(${a.map((channel, k) => Math.round(channel + (at - i) * (b[k] - channel))).join(",")})`;
}

const counted = (codes, length) => codes.reduce((counts, code) => (counts[code]++, counts), new Array(length).fill(0));

/** How models are coloured: a list of colours, the number of each model's, and what the legend says. */
function colouring() {
  const palette = zoo.colours[theme];
  const axis = axes.get(state.colour), field = fieldOf.get(state.colour);
  if (!state.colour || (!axis && !field)) return { colours: [palette[0]], of: () => 0, legend: [["all models", 0]] };
  if (field?.codes) {
    const K = field.values.length;
    if (field.ordered) {
      const known = field.values.filter((value) => typeof value === "number").length;
      const colours = field.values.map((value, k) => (typeof value === "number" ? ramp(k / Math.max(1, known - 1)) : GREY[theme]));
      return { colours, of: (m) => field.codes[m], legend: field.values.map((value, k) => [shown(value), k]) };
    }
    const counts = counted(field.codes, K);
    const order = [...counts.keys()].sort((a, b) => counts[b] - counts[a]).slice(0, K > palette.length ? palette.length - 1 : K);
    const place = new Uint16Array(K).fill(order.length);
    order.sort((a, b) => a - b).forEach((code, i) => { place[code] = i; });
    const legend = order.map((code, i) => [shown(field.values[code]), i]);
    if (K > order.length) legend.push([`${number.format(K - order.length)} others`, order.length]);
    return { colours: [...palette.slice(0, order.length), GREY[theme]], of: (m) => place[field.codes[m]], legend };
  }
  const of = axis.of, transform = axis.log ? Math.log : (value) => value;
  let [low, high, missing] = [Infinity, -Infinity, false];
  for (let m = 0; m < M; m++) {
    const value = of(m, state.snapshot);
    if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    else missing = true;
  }
  const [from, to] = [transform(low), transform(high)];
  return {
    colours: [...Array.from({ length: STEPS }, (_, k) => ramp(k / (STEPS - 1))), GREY[theme]],
    of: (m) => {
      const value = of(m, state.snapshot);
      return Number.isFinite(value) ? Math.min(STEPS - 1, Math.floor(((transform(value) - from) / (to - from || 1)) * STEPS)) : STEPS;
    },
    range: [low, high],
    legend: missing ? [["n/a", STEPS]] : [],
  };
}

function drawLegend({ colours, legend, range }) {
  const swatch = (background) => { const made = element("i"); made.style.background = background; return made; };
  const items = legend.map(([words, k]) => element("li", "", {}, swatch(colours[k]), words));
  if (range) {
    const bar = swatch(`linear-gradient(90deg, ${colours.slice(0, STEPS).join(",")})`);
    bar.className = "ramp";
    items.unshift(element("li", "", {}, shown(range[0]), bar, shown(range[1])));
  }
  $("legend").replaceChildren(element("li", state.colour || "", { class: "quiet" }), ...items);
}

// --- charts by Vega

function config() {
  const [text, quiet, rule] = ["--text", "--quiet", "--rule"].map(style);
  const font = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif";
  return {
    background: null,
    font,
    view: { stroke: null },
    axis: {
      gridColor: rule, domainColor: rule, tickColor: rule, labelColor: quiet, titleColor: text, labelFontSize: 11.5, titleFontSize: 12.5, titleFontWeight: 500,
      labelLimit: 120, labelPadding: 5, titlePadding: 8, labelOverlap: "greedy", labelSeparation: 8, tickCount: 6,
    },
    header: { labelColor: text, labelFontSize: 12, labelFontWeight: 500, title: null, labelLimit: 220 },
    legend: { labelColor: quiet, titleColor: text },
  };
}

/** Draw a chart into an element; expressions are interpreted, so that the page need not evaluate text. */
async function chart(into, spec) {
  const made = await window.vegaEmbed(into, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", config: config(), ...spec }, {
    ast: true, renderer: "canvas", actions: false, tooltip: false,
  });
  into.querySelectorAll("canvas").forEach((canvas) => canvas.removeAttribute("role"));
  return made;
}

// --- the points

const points = $("points"), context = points.getContext("2d");
let frame = null; // scales and place of the axes, once they are drawn
let xs = new Float32Array(M), ys = new Float32Array(M); // pixels of each model; NaN where it is not in this plot
let ink = colouring();
let drawing = 0; // only the last of several drawings counts

/** A number between -1 and 1 that belongs to a model, so that models of one category do not cover each other. */
function jitter(model, salt) {
  const hash = Math.imul((model + 1) ^ salt, 0x9e3779b1);
  return ((hash ^ (hash >>> 15)) >>> 0) / 2 ** 31 - 1;
}

function extent(axis) {
  let [low, high] = [Infinity, -Infinity];
  for (let m = 0; m < M; m++) {
    if (state.zoomed && !visible[m]) continue;
    for (const s of axis.moves && !state.zoomed ? [0, S - 1] : [state.snapshot]) {
      const value = axis.of(m, s);
      if (Number.isFinite(value) && !(axis.log && value <= 0)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  if (low > high) return [0, 1];
  if (axis.log) return [low / 1.08, high * 1.08];
  const pad = (high - low || Math.abs(high) || 1) * 0.03;
  return [low - pad, high + pad];
}

function channel(axis, name, width) {
  const label = axis.share ? `${axis.label} (${percent(axis.share())})` : axis.label;
  if (axis.values) {
    const words = axis.values.map(shown);
    const tight = name === "x" && words.join("").length * 7 + 14 * words.length > width;
    return { field: name, type: "nominal", title: label, sort: null, scale: { domain: words, padding: 0.5 }, axis: { labelAngle: tight ? -40 : 0, grid: true, labelOverlap: false, labelLimit: tight ? 130 : 120 } };
  }
  return { field: name, type: "quantitative", title: label, scale: { type: axis.log ? "log" : "linear", domain: extent(axis), nice: false }, axis: axis.log ? { format: "~g" } : {} };
}

/** Draw the axes of the plot anew, then the points. */
async function drawAxes() {
  const mine = ++drawing, [x, y] = [axes.get(state.x), axes.get(state.y)];
  const width = $("plot").clientWidth, height = Math.round(Math.min(560, Math.max(300, width * 0.66)));
  const { view } = await chart($("axes"), {
    width, height, autosize: { type: "fit", contains: "padding" }, padding: { left: 2, right: 10, top: 8, bottom: 2 },
    data: { values: [] }, mark: "point", encoding: { x: channel(x, "x", width), y: channel(y, "y", width) },
  });
  if (mine !== drawing) return;
  const [left, top] = [view.origin()[0] + view.padding().left, view.origin()[1] + view.padding().top];
  const pixel = (axis, name) => {
    const scale = view.scale(name);
    if (!axis.values) return axis.log ? (m) => { const value = axis.of(m, state.snapshot); return value > 0 ? scale(value) : NaN; } : (m) => scale(axis.of(m, state.snapshot));
    const places = axis.values.map((value) => scale(shown(value)));
    const room = (places.length > 1 ? Math.abs(places[1] - places[0]) : view.signal(name === "x" ? "width" : "height")) * 0.34;
    return (m) => places[axis.of(m)] + room * jitter(m, name === "x" ? 1 : 77);
  };
  frame = { left, top, width: view.signal("width"), height: view.signal("height"), x: pixel(x, "x"), y: pixel(y, "y") };
  place();
}

const MARGIN = 4; // pixels around the axes, for points at their ends

/** Find where the models are, then draw them. */
function place() {
  if (!frame) return;
  for (let m = 0; m < M; m++) {
    xs[m] = frame.x(m);
    ys[m] = frame.y(m);
    if (state.zoomed && (xs[m] < -1 || xs[m] > frame.width + 1 || ys[m] < -1 || ys[m] > frame.height + 1)) xs[m] = NaN;
  }
  ink = colouring();
  drawLegend(ink);
  draw();
}

const drawable = (m) => visible[m] && xs[m] === xs[m] && ys[m] === ys[m];

/** Draw the points that are shown, colour by colour; chosen ones last. */
function draw() {
  if (!frame) return;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [frame.width + 2 * MARGIN, frame.height + 2 * MARGIN];
  points.style.left = `${frame.left - MARGIN}px`;
  points.style.top = `${frame.top - MARGIN}px`;
  points.style.width = `${width}px`;
  points.style.height = `${height}px`;
  points.width = Math.round(width * ratio);
  points.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, MARGIN * ratio, MARGIN * ratio);
  const buckets = ink.colours.map(() => []);
  let drawn = 0;
  for (let m = 0; m < M; m++) {
    if (!drawable(m)) continue;
    drawn++;
    if (!state.chosen.has(m)) buckets[ink.of(m)].push(m);
  }
  const radius = drawn > MANY ? 1.5 : drawn > 1500 ? 2.3 : drawn > 300 ? 3 : 4;
  const dots = (models, size) => {
    context.beginPath();
    if (drawn > MANY) for (const m of models) context.rect(xs[m] - size, ys[m] - size, 2 * size, 2 * size);
    else
      for (const m of models) {
        context.moveTo(xs[m] + size, ys[m]);
        context.arc(xs[m], ys[m], size, 0, 7);
      }
    context.fill();
  };
  const coloured = (groups, size) => {
    const layers = groups.reduce((sum, models) => sum + models.length, 0) > 300 ? LAYERS : 1;
    const parts = groups.map((models) => Array.from({ length: layers }, () => []));
    groups.forEach((models, k) => models.forEach((m) => parts[k][m % layers].push(m)));
    for (let layer = 0; layer < layers; layer++)
      parts.forEach((own, k) => { context.fillStyle = ink.colours[k]; dots(own[layer], size); });
  };
  const some = state.chosen.size > 0;
  context.globalAlpha = some ? 0.22 : drawn > MANY ? 0.55 : 0.72;
  coloured(buckets, radius);
  context.globalAlpha = 1;
  const chosen = ink.colours.map(() => []);
  for (const m of state.chosen) if (drawable(m)) chosen[ink.of(m)].push(m);
  context.fillStyle = style("--text");
  if (state.chosen.size <= 2000) dots(chosen.flat(), radius + 2);
  coloured(chosen, radius + 0.8);
  for (const m of new Set([state.active, document.activeElement === points ? state.cursor : -1])) {
    if (m < 0 || !drawable(m)) continue;
    context.strokeStyle = style("--text");
    context.lineWidth = 1.6;
    context.beginPath();
    context.arc(xs[m], ys[m], radius + 6, 0, 7);
    context.stroke();
  }
  if (!drawn) {
    context.fillStyle = style("--quiet");
    context.font = "14px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(numVisible ? "No model has these values" : "No model passes the filters", frame.width / 2, frame.height / 2);
  }
  points.dataset.drawn = drawn;
  points.setAttribute("aria-label", `Plot of ${drawn} models: ${state.y} over ${state.x}, coloured by ${state.colour || "nothing"}`);
  count(drawn);
}

function count(drawn) {
  const parts = [`${number.format(drawn)} of ${number.format(M)} shown`];
  if (numVisible !== drawn) parts.push(`${number.format(numVisible - drawn)} without these values`);
  if (state.chosen.size) parts.push(`${number.format(state.chosen.size)} chosen`);
  $("count").textContent = parts.join(" · ");
  $("filtered").textContent = numVisible === M ? `all ${number.format(M)} models` : `${number.format(numVisible)} of ${number.format(M)} models`;
  $("reset").disabled = passes.size === 0;
  $("none").disabled = state.chosen.size === 0;
  $("all").disabled = drawn === 0;
}

// --- choosing models

function choose(models, { more = false, toggle = false } = {}) {
  const before = state.chosen;
  state.chosen = more || toggle ? new Set(before) : new Set();
  for (const m of models) if (toggle && before.has(m)) state.chosen.delete(m); else state.chosen.add(m);
  const added = models.filter((m) => state.chosen.has(m)), first = added.find((m) => samples.histograms.has(m)) ?? added[0];
  if (first !== undefined) state.active = first;
  if (!state.chosen.has(state.active)) state.active = state.chosen.values().next().value ?? -1;
  if (state.active >= 0) state.cursor = state.active;
  draw();
  showModel();
  showDetails();
}

function nearest(x, y, reach) {
  let [best, distance] = [-1, reach * reach];
  for (let m = 0; m < M; m++) {
    const d = (xs[m] - x) ** 2 + (ys[m] - y) ** 2;
    if (d <= distance && drawable(m)) [best, distance] = [m, d];
  }
  return best;
}

const spot = (event) => {
  const box = points.getBoundingClientRect();
  return [event.clientX - box.left - MARGIN, event.clientY - box.top - MARGIN];
};
let drag = null;

points.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  const [x, y] = spot(event);
  drag = { x, y, moved: false, boxes: event.pointerType !== "touch" || $("box").ariaPressed === "true", touch: event.pointerType === "touch" };
  if (drag.boxes) points.setPointerCapture(event.pointerId);
});
points.addEventListener("pointermove", (event) => {
  const [x, y] = spot(event);
  if (!drag) return showTip(event.pointerType === "touch" ? -1 : nearest(x, y, 14));
  drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > 5;
  if (!drag.moved || !drag.boxes) return;
  showTip(-1);
  draw();
  context.fillStyle = context.strokeStyle = style("--accent");
  context.lineWidth = 1;
  context.globalAlpha = 0.12;
  context.fillRect(drag.x, drag.y, x - drag.x, y - drag.y);
  context.globalAlpha = 1;
  context.strokeRect(drag.x, drag.y, x - drag.x, y - drag.y);
});
points.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const [x, y] = spot(event), { x: x0, y: y0, moved, boxes, touch } = drag;
  drag = null;
  if (moved && boxes) {
    const inside = [];
    for (let m = 0; m < M; m++)
      if (drawable(m) && (xs[m] - x0) * (xs[m] - x) <= 0 && (ys[m] - y0) * (ys[m] - y) <= 0) inside.push(m);
    choose(inside, { more: event.shiftKey || touch });
  } else if (!moved) {
    const found = nearest(x, y, touch ? 24 : 14);
    if (found >= 0 || !touch) choose(found < 0 ? [] : [found], { toggle: event.shiftKey || touch });
  }
});
points.addEventListener("pointercancel", () => { drag = null; draw(); });
points.addEventListener("pointerleave", () => showTip(-1));
for (const name of ["focus", "blur"]) points.addEventListener(name, () => draw());
$("box").addEventListener("click", () => {
  const on = $("box").ariaPressed !== "true";
  $("box").ariaPressed = String(on);
  points.classList.toggle("box", on);
});
$("all").addEventListener("click", () => choose([...Array(M).keys()].filter(drawable)));
$("none").addEventListener("click", () => choose([]));

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

points.addEventListener("keydown", (event) => {
  const direction = DIRECTIONS[event.key];
  if (event.key === "Escape") choose([]);
  else if ((event.key === "Enter" || event.key === " ") && state.cursor >= 0) choose([state.cursor], { toggle: event.shiftKey });
  else if (direction) moveCursor(...direction);
  else return;
  event.preventDefault();
});

/** Move to the next model in a direction: the closest one, where distance across the direction counts more. */
function moveCursor(dx, dy) {
  let [best, least] = [-1, Infinity];
  const start = state.cursor >= 0 && drawable(state.cursor) ? state.cursor : nearest(frame.width / 2, frame.height / 2, 1e6);
  if (start !== state.cursor) best = start;
  else
    for (let m = 0; m < M; m++) {
      const [ahead, aside] = [(xs[m] - xs[start]) * dx + (ys[m] - ys[start]) * dy, Math.abs((xs[m] - xs[start]) * dy) + Math.abs((ys[m] - ys[start]) * dx)];
      if (ahead > 0.5 && ahead + 3 * aside < least && drawable(m)) [best, least] = [m, ahead + 3 * aside];
    }
  if (best < 0) return;
  state.cursor = best;
  draw();
  showTip(best);
  $("said").textContent = summary(best).join(", ");
}

function summary(m) {
  const of = (axis) => (axis.values ? shown(axis.values[axis.of(m)]) : shown(axis.of(m, state.snapshot)));
  const names = [...new Set([state.x, state.y, state.colour].filter((name) => axes.has(name)))];
  return [zoo.ids[m], ...names.map((name) => `${name} ${of(axes.get(name))}`)];
}

let tipped = -1;
function showTip(m) {
  if (m === tipped) return;
  tipped = m;
  const tip = $("tip");
  tip.hidden = m < 0;
  if (m < 0) return;
  const [name, ...rest] = summary(m);
  tip.replaceChildren(element("b", name), ...rest.map((words) => element("div", words)));
  const [x, y] = [frame.left + xs[m], frame.top + ys[m]];
  tip.style.left = `${Math.max(0, Math.min(x + 12, $("plot").clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 14 + tip.offsetHeight > $("plot").clientHeight ? y - tip.offsetHeight - 12 : y + 14}px`;
}

// --- filters

/** Set or drop the filter of a field, then show what passes all. */
function filter(field, pass) {
  if (pass) passes.set(field, pass);
  else passes.delete(field);
  visible.fill(1);
  for (const own of passes.values()) for (let m = 0; m < M; m++) visible[m] &= own[m];
  numVisible = visible.reduce((sum, one) => sum + one, 0);
  showTip(-1);
  draw();
  showCurvesLater();
  if (zoo.images.length) showImagesLater();
}

/** The filter of one field; `reset` sets it back. */
function filterOf(field, open) {
  const stateWords = element("span", "", { class: "state" });
  const body = element("div");
  const box = element("details", "", { class: "filter", "data-field": field.name }, element("summary", field.name, {}, stateWords), element("p", field.about, { class: "about" }), body);
  box.open = open;
  const say = (words, active) => { stateWords.textContent = words; box.toggleAttribute("data-active", active); };
  const made = field.codes ? (field.values.length <= LISTED ? chips : search) : range;
  return { box, reset: made(field, body, say) };
}

function chips(field, body, say) {
  const counts = counted(field.codes, field.values.length);
  const inputs = field.values.map(() => element("input", "", { type: "checkbox" }));
  const apply = () => {
    const on = inputs.map((input) => input.checked), chosen = on.filter(Boolean).length;
    say(chosen ? `${chosen} of ${on.length}` : `${on.length} values`, chosen > 0);
    filter(field, chosen ? Uint8Array.from(field.codes, (code) => +on[code]) : null);
  };
  body.className = "chips";
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", field.name);
  body.append(...inputs.map((input, k) => element("label", "", {}, input, shown(field.values[k]), element("small", number.format(counts[k])))));
  body.addEventListener("input", apply);
  say(`${inputs.length} values`, false);
  return () => {
    inputs.forEach((input) => { input.checked = false; });
    say(`${inputs.length} values`, false);
  };
}

function search(field, body, say) {
  const input = element("input", "", { type: "search", "aria-label": `${field.name} contains`, placeholder: "contains ..." });
  const words = `${number.format(field.values.length)} values`;
  body.className = "range";
  body.append(input);
  input.addEventListener("input", () => {
    const part = input.value.toLowerCase(), on = field.values.map((value) => +String(value).toLowerCase().includes(part));
    say(part ? `${number.format(on.reduce((a, b) => a + b, 0))} of ${words}` : words, part !== "");
    filter(field, part ? Uint8Array.from(field.codes, (code) => on[code]) : null);
  });
  say(words, false);
  return () => {
    input.value = "";
    say(words, false);
  };
}

function range(field, body, say) {
  const known = field.numbers.filter(Number.isFinite);
  const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const ends = 1000, toNumber = (t) => (field.log ? low * (high / low) ** (t / ends) : low + ((high - low) * t) / ends);
  const toShare = (value) => (field.log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const text = (value) => shown(field.whole ? Math.round(value) : value);
  const [from, to] = [0, ends].map((value, k) => element("input", "", { type: "range", min: 0, max: ends, value, "aria-label": `${field.name}, ${k ? "highest" : "lowest"}` }));
  const state = () => [Math.min(+from.value, +to.value), Math.max(+from.value, +to.value)];
  const whole = `${text(low)} to ${text(high)}`;
  body.className = "range";
  body.append(bars(known, toShare), element("label", "from", {}, from), element("label", "to", {}, to));
  const apply = () => {
    const [a, b] = state(), full = a === 0 && b === ends;
    const [least, most] = [a === 0 ? low : toNumber(a), b === ends ? high : toNumber(b)];
    from.setAttribute("aria-valuetext", text(least));
    to.setAttribute("aria-valuetext", text(most));
    say(full ? whole : `${text(least)} to ${text(most)}`, !full);
    filter(field, full ? null : Uint8Array.from(field.numbers, (value) => +(value >= least && value <= most)));
  };
  body.addEventListener("input", apply);
  say(whole, false);
  return () => {
    [from.value, to.value] = [0, ends];
    say(whole, false);
  };
}

/** How numbers are spread, as small bars. */
function bars(values, toShare) {
  const counts = new Array(32).fill(0), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const value of values) counts[Math.min(31, Math.max(0, Math.floor(32 * toShare(value))))]++;
  const highest = Math.max(...counts);
  counts.forEach((some, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect"), height = some ? Math.max(0.6, (20 * some) / highest) : 0;
    for (const [name, value] of Object.entries({ x: i * 4, width: 3.4, y: 20 - height, height })) bar.setAttribute(name, value);
    svg.append(bar);
  });
  svg.setAttribute("viewBox", "0 0 128 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

// --- training curves

const quantile = (sorted, share) => {
  const at = share * (sorted.length - 1), i = Math.floor(at);
  return sorted[i] + (at - i) * ((sorted[i + 1] ?? sorted[i]) - sorted[i]);
};

/** The middle half of the models that are shown, for each colour of categories, at each snapshot. */
function quartiles(metric, time) {
  const field = fieldOf.get(state.colour), grouped = field?.codes && ink.legend.length <= zoo.colours[theme].length;
  const groups = grouped ? ink.legend.map(([, k]) => k) : [0];
  const lines = [];
  for (const group of groups) {
    const models = [];
    for (let m = 0; m < M; m++) if (visible[m] && (!grouped || ink.of(m) === group)) models.push(m);
    for (let s = 0; s < S; s++) {
      const there = models.filter((m) => s <= last[m] && Number.isFinite(metric.values[m * S + s]));
      if (!there.length) continue;
      const values = Float32Array.from(there, (m) => metric.values[m * S + s]).sort();
      const at = Float32Array.from(there, (m) => timeAt(time, m, s)).sort();
      lines.push({ m: group, c: grouped ? ink.colours[group] : zoo.colours[theme][0], t: quantile(at, 0.5), v: quantile(values, 0.5), a: quantile(values, 0.25), b: quantile(values, 0.75) });
    }
  }
  return lines;
}

async function showCurves() {
  const metric = metrics.find(({ name }) => name === state.metric), time = times.find(({ name }) => name === state.time);
  if (!metric) return;
  const all = [...state.chosen], every = Math.max(1, all.length / CURVES);
  const some = Array.from({ length: Math.min(CURVES, all.length) }, (_, i) => all[Math.floor(i * every)]);
  if (state.active >= 0 && !some.includes(state.active)) some[CURVES - 1] = state.active;
  let values = [];
  if (all.length)
    for (const m of some)
      for (let s = 0; s <= last[m]; s++) {
        const v = metric.values[m * S + s];
        if (Number.isFinite(v)) values.push({ m, t: timeAt(time, m, s), v, c: ink.colours[ink.of(m)], w: m === state.active ? 3 : 1.5 });
      }
  else values = quartiles(metric, time);
  const words = all.length ? (all.length > CURVES ? `${CURVES} of ${number.format(all.length)} chosen models` : `${all.length} chosen model${all.length > 1 ? "s" : ""}`) : "median and quartiles of the models shown";
  $("curves-words").textContent = values.length ? words : "no model is shown";
  if (!values.length) return $("curves").replaceChildren(); // Vega would look for the extent of nothing
  const log = metric.codes.scale === "log";
  const x = { field: "t", type: "quantitative", title: time.name, scale: { nice: false }, axis: { tickMinStep: 1 } };
  const y = { field: "v", type: "quantitative", title: metric.name, scale: log ? { type: "log" } : { zero: false }, axis: log ? { format: "~g" } : {} };
  const colour = { field: "c", type: "nominal", scale: null };
  const width = $("curves").clientWidth;
  const layer = [{ mark: { type: "line", strokeJoin: "round", point: S <= 30 && values.length <= 400 ? { size: 22, filled: true } : false }, encoding: { x, y, color: colour, detail: { field: "m" }, strokeWidth: all.length ? { field: "w", type: "quantitative", scale: null } : { value: 2 } } }];
  if (!all.length && new Set(values.map(({ m }) => m)).size <= BANDS) layer.unshift({ mark: { type: "area", opacity: 0.13 }, encoding: { x, y: { ...y, field: "a" }, y2: { field: "b" }, color: colour, detail: { field: "m" } } });
  await chart($("curves"), { width, height: 230, autosize: { type: "fit", contains: "padding" }, padding: { left: 2, right: 8, top: 6, bottom: 2 }, data: { values }, layer });
}
const showCurvesLater = later(180, showCurves);

// --- one model

function showModel() {
  const m = state.active, chosen = [...state.chosen], at = chosen.indexOf(m);
  $("model").hidden = m < 0;
  $("no-model").hidden = m >= 0;
  $("which").textContent = m < 0 ? "" : `${number.format(at + 1)} of ${number.format(chosen.length)}`;
  $("previous").disabled = $("next").disabled = chosen.length < 2;
  if (m < 0) return;
  $("model-id").textContent = zoo.ids[m];
  const line = (name, value, about) => element("tr", "", {}, element("th", name, { scope: "row", title: about }), element("td", value));
  const results = [...metrics.map((metric) => line(metric.name, shown(metric.values[m * S + last[m]]), metric.about)), ...times.map((time) => line(time.name, shown(timeAt(time, m, last[m])), time.about))];
  $("recipe").replaceChildren(...results, ...fields.filter((field) => valueOf(field, m) !== "n/a").map((field) => line(field.name, valueOf(field, m), field.about)));
}

function step(by) {
  const chosen = [...state.chosen], at = chosen.indexOf(state.active);
  state.active = chosen[(at + by + chosen.length) % chosen.length];
  draw();
  showModel();
  showDetails();
}
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(zoo.ids[state.active]);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("model-id")); // the reader copies it
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy model_id"; }, 1500);
});

// --- what is shown of a sample

const samples = { histograms: new Map(), images: new Map(), edges: new Map() }; // model -> its part of the sample
for (const kind of Object.keys(samples))
  for (const part of zoo[kind]) {
    const own = { ...part, models: unpack(part.models) };
    for (const name of ["snapshots", "ranges", "counts", "pixels", "kept"]) if (part[name]) own[name] = unpack(part[name]);
    own.shape = (part.counts ?? part.pixels ?? part.kept).shape;
    own.models.forEach((m, n) => samples[kind].set(m, { part: own, n }));
  }

/** The model that a card shows: the active one; without one, the first of the sample that is shown. */
function sampled(kind) {
  if (state.active >= 0) return samples[kind].has(state.active) ? state.active : -1;
  for (const m of samples[kind].keys()) if (visible[m]) return m;
  return -1;
}

/** Say that the active model is not in the sample, and offer one that is. */
function notSampled(kind) {
  const box = element("div", "", { class: "empty" }, `${zoo.ids[state.active] ?? "What is shown"} is not in the sample of ${samples[kind].size} models that is shown in detail. `);
  const [first] = [...samples[kind].keys()].filter((m) => visible[m]);
  if (first !== undefined) {
    const button = element("button", "Choose one that is", { type: "button" });
    button.addEventListener("click", () => choose([first]));
    box.append(button);
  }
  return box;
}

const stageWords = (m, place) => `${state.time} ${shown(timeAt(times.find(({ name }) => name === state.time), m, place))}`;

async function showHistograms() {
  if (!samples.histograms.size) return;
  const m = sampled("histograms"), into = $("histograms");
  $("histograms-words").textContent = m < 0 ? "" : zoo.ids[m];
  if (m < 0) {
    $("histograms-legend").replaceChildren();
    return into.replaceChildren(notSampled("histograms"));
  }
  const { part, n } = samples.histograms.get(m), [, T, K, B] = part.shape;
  const places = [...new Set(part.snapshots.slice(n * K, (n + 1) * K))];
  const values = [], width = $("histograms-card").clientWidth - 34;
  const columns = Math.max(1, Math.min(T, 4, Math.floor(width / 150))), cell = Math.floor(width / columns) - 22;
  places.forEach((place, i) => {
    const k = part.snapshots.slice(n * K, (n + 1) * K).indexOf(place);
    const colour = ramp(places.length > 1 ? i / (places.length - 1) : 1);
    for (let t = 0; t < T; t++) {
      const [low, high] = part.ranges.slice(2 * (n * T + t), 2 * (n * T + t) + 2), size = (high - low || 1) / B;
      for (let b = 0; b <= B; b++)
        values.push({ t: part.tensors[t], s: i, c: colour, x: low + b * size, y: b < B ? part.counts[((n * T + t) * K + k) * B + b] : 0 });
    }
  });
  $("histograms-legend").replaceChildren(...places.map((place, i) => {
    const swatch = element("i");
    swatch.style.background = ramp(places.length > 1 ? i / (places.length - 1) : 1);
    return element("li", "", {}, swatch, stageWords(m, place));
  }));
  await chart(into, {
    data: { values },
    facet: { field: "t", type: "nominal", sort: part.tensors, columns },
    columns,
    spacing: { row: 14, column: 16 },
    spec: {
      width: cell, height: 84, mark: { type: "line", interpolate: "step-after", strokeWidth: 1.6 },
      encoding: {
        x: { field: "x", type: "quantitative", title: null, scale: { zero: false, nice: false }, axis: { tickCount: 3, grid: false, labelFlush: true } },
        y: { field: "y", type: "quantitative", title: null, axis: null },
        color: { field: "c", type: "nominal", scale: null }, detail: { field: "s" },
      },
    },
    resolve: { scale: { x: "independent", y: "independent" }, axis: { x: "independent" } },
    padding: 2,
  });
}

/** The image of a sampled model at one of its snapshots, as a canvas. */
function picture({ part, n }, k) {
  const [, K, C, H, W] = part.shape, canvas = element("canvas", "", { class: "pixels", width: W, height: H });
  const image = new ImageData(W, H), start = (n * K + k) * C * H * W;
  for (let i = 0; i < H * W; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = part.pixels[start + Math.min(c, C - 1) * H * W + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function showImages() {
  if (!samples.images.size) return;
  const m = sampled("images"), psnr = metrics.find(({ name }) => name === "psnr");
  $("images-model").textContent = m < 0 ? "" : zoo.ids[m];
  if (m < 0) $("stages").replaceChildren(notSampled("images"));
  else {
    const found = samples.images.get(m), K = found.part.shape[1];
    $("stages").replaceChildren(...[...found.part.snapshots.slice(found.n * K, (found.n + 1) * K)].map((place, k) => {
      const words = psnr ? `${psnr.values[m * S + place].toFixed(1)} dB` : "";
      const canvas = picture(found, k);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Image of ${zoo.ids[m]} at ${stageWords(m, place)}`);
      return element("figure", "", {}, canvas, element("figcaption", "", {}, stageWords(m, place), element("br"), words));
    }));
  }
  const label = fieldOf.get("label"), every = [...samples.images.keys()].filter((one) => visible[one]);
  const chosen = every.filter((one) => state.chosen.has(one)), wall = (chosen.length > 1 ? chosen : every).slice(0, WALL);
  $("wall").replaceChildren(...wall.map((one) => {
    const found = samples.images.get(one), button = element("button", "", { type: "button", "aria-pressed": String(one === state.active), title: zoo.ids[one] }, picture(found, found.part.shape[1] - 1));
    button.setAttribute("aria-label", `${zoo.ids[one]}${label ? `, label ${valueOf(label, one)}` : ""}`);
    button.addEventListener("click", (event) => choose([one], { toggle: event.shiftKey }));
    return button;
  }));
  $("images-words").textContent = `${wall.length} of the ${samples.images.size} decoded models${chosen.length > 1 ? " that are chosen" : ""}, each at its last snapshot. Click one to choose it.`;
}
const showImagesLater = later(120, showImages);

function showEdges() {
  if (!samples.edges.size) return;
  const m = sampled("edges");
  $("edges-words").textContent = m < 0 ? "" : zoo.ids[m];
  if (m < 0) return $("edges").replaceChildren(notSampled("edges"));
  const { part, n } = samples.edges.get(m), stride = part.shape[1], [on, off] = [zoo.colours[theme][0], style("--box")];
  let bit = 0;
  $("edges").replaceChildren(...part.layers.map(([layer, outputs, inputs]) => {
    const kept = Array.from({ length: outputs * inputs }, () => { const i = bit++; return (part.kept[n * stride + (i >> 3)] >> (7 - (i & 7))) & 1; });
    const total = kept.reduce((a, b) => a + b, 0), isImage = inputs === part.channels * part.side ** 2;
    const canvas = element("canvas", "", { role: "img", "aria-label": `Edges of ${layer}` }), scale = isImage ? 12 : 9;
    const [columns, rows] = isImage ? [part.side * part.channels, part.side] : [inputs, outputs];
    [canvas.width, canvas.height] = [columns * scale, rows * scale];
    const pen = canvas.getContext("2d");
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < columns; c++) {
        let share = 0;
        if (isImage) {
          const input = Math.floor(c / part.side) * part.side ** 2 + r * part.side + (c % part.side);
          for (let o = 0; o < outputs; o++) share += kept[o * inputs + input] / outputs;
        } else share = kept[r * inputs + c];
        pen.fillStyle = share > 0 && isImage ? ramp(share) : share ? on : off;
        pen.fillRect(c * scale, r * scale, scale - 1, scale - 1);
      }
    const share = `${layer}: ${number.format(total)} of ${number.format(kept.length)} edges kept (${percent(total / kept.length)})`;
    const words = isImage ? `for each pixel, how many of its ${outputs} edges` : `${outputs} units (rows) of ${inputs} inputs`;
    const caption = element("figcaption", "", {}, share, element("br"), words);
    if (isImage) {
      const bar = element("span", "", { class: "ramp" });
      bar.style.background = `linear-gradient(90deg, ${Array.from({ length: STEPS }, (_, k) => ramp(k / (STEPS - 1))).join(",")})`;
      caption.append(element("span", "", { class: "scale" }, "1", bar, String(outputs)));
    }
    return element("figure", "", {}, canvas, caption);
  }));
}

const showHistogramsLater = later(60, showHistograms);
function showDetails() {
  showCurvesLater();
  showHistogramsLater();
  showImages();
  showEdges();
}

// --- the controls

function fill(select, options, value, set) {
  const groups = new Map();
  for (const { name, label, group } of options) {
    if (!groups.has(group)) groups.set(group, element("optgroup", "", { label: group }));
    groups.get(group).append(element("option", label ?? name, { value: name }));
  }
  for (const [group, made] of groups) select.append(...(group === undefined ? made.children : [made]));
  select.value = value ?? "";
  select.addEventListener("input", () => set(select.value));
}

function moved() {
  const moves = [state.x, state.y, state.colour].some((name) => axes.get(name)?.moves);
  const weights = [state.x, state.y].some((name) => axes.get(name)?.ofWeights);
  $("of-snapshot").hidden = !moves || S < 2;
  $("of-architecture").hidden = !weights || fits.length < 2;
  $("snapshot-words").textContent = `Snapshot ${state.snapshot + 1} of ${S}${state.snapshot === S - 1 ? " (last)" : ""}`;
}

function setAxis(name, value) {
  state[name] = value;
  state.zoomed = false;
  $("zoom").ariaPressed = "false";
  moved();
  showTip(-1);
  drawAxes();
}

const coloured = [...fields.map((field) => ({ ...field, group: "Recipe" })), ...[...axes.values()].filter((axis) => axis.group === "Results")];
fill($("x"), axes.values(), state.x, (value) => setAxis("x", value));
fill($("y"), axes.values(), state.y, (value) => setAxis("y", value));
fill($("colour"), [{ name: "", label: "nothing" }, ...coloured.map(({ name, group }) => ({ name, group }))], state.colour, (value) => { state.colour = value; moved(); place(); showDetails(); });
fill($("metric"), metrics.map(({ name }) => ({ name })), state.metric, (value) => { state.metric = value; showCurves(); });
fill($("time"), times.map(({ name }) => ({ name })), state.time, (value) => { state.time = value; showDetails(); });
fill($("architecture"), fits.map((fit, i) => ({ name: i, label: `${fit.architecture} (${number.format(fit.models)} models)` })), 0, (value) => { state.fit = +value; setAxis("x", state.x); });
$("snapshot").max = S - 1;
$("snapshot").value = S - 1;
$("snapshot").addEventListener("input", () => { state.snapshot = +$("snapshot").value; moved(); showTip(-1); place(); });
$("zoom").addEventListener("click", () => { state.zoomed = !state.zoomed; $("zoom").ariaPressed = String(state.zoomed); drawAxes(); });

const filters = fields.map((field, i) => filterOf(field, i < OPEN && (field.values ?? []).join("").length < 120));
$("fields").append(...filters.map(({ box }) => box));
if (!filters.length) $("fields").append(element("p", "All models have the same recipe.", { class: "empty" }));
$("reset").addEventListener("click", () => {
  filters.forEach(({ reset }) => reset());
  passes.clear();
  filter(null, null);
});
if (matchMedia("(max-width: 47.99rem)").matches) $("filters").open = false;

const counts = [[zoo.models, "model"], [zoo.snapshots, "snapshot"], [zoo.architectures, "architecture"]];
$("facts").textContent = [...counts.map(([many, noun]) => `${number.format(many)} ${noun}${many === 1 ? "" : "s"}`), zoo.datasets.join(", ")].join(" · ");
$("same").append(...zoo.same.map(({ name, value, about }) => element("tr", "", {}, element("th", name, { scope: "row", title: about }), element("td", shown(value)))));
$("notes").append(...zoo.notes.map((note) => element("li", note)));
for (const kind of Object.keys(samples)) $(`${kind}-card`).hidden = samples[kind].size === 0;
if (!samples.images.size && !samples.edges.size) $("models-card").after($("histograms-card")); // there is room

async function redrawAll() {
  await drawAxes();
  showModel();
  showDetails();
}

moved();
await redrawAll();
let width = $("plot").clientWidth;
new ResizeObserver(later(120, () => {
  if ($("plot").clientWidth === width) return;
  width = $("plot").clientWidth;
  redrawAll();
})).observe($("plot"));
document.body.dataset.state = "ready";
