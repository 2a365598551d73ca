// The pictures of a report, drawn as drawing.py draws them, but to read, to zoom, and against steps or tokens.
// Text goes into the page as text alone: textContent and attributes that are no addresses.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const LEFT = 60, RIGHT = 12, TOP = 20, BOTTOM = 30, LETTER_WIDTH = 12, NEAR = 6;
const view = { axis: "steps", range: null, at: null };
const figures = [...document.querySelectorAll(".plot")].map((element, number) => ({
  ...data.plots[number], element,
  canvas: element.querySelector(".canvas"), readout: element.querySelector(".readout"), width: 0,
}));

function node(parent, tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function scale(low, high, start, end, logarithmic) {
  const level = (value) => logarithmic ? Math.log10(Math.max(value, 1e-300)) : value;
  const share = (end - start) / (level(high) - level(low));
  return {
    low, high, logarithmic,
    place: (value) => start + (level(value) - level(low)) * share,
    value: (place) => low + (place - start) / share,
  };
}

function ticks(scale, most) {
  const { low, high } = scale;
  if (scale.logarithmic) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first + 1) / most)), found = [];
    for (let exponent = first; exponent <= last; exponent++) if (exponent % every === 0) found.push(10 ** exponent);
    if (last > first) return found;
  }
  const base = 10 ** Math.floor(Math.log10((high - low) / most));
  const step = base * [1, 2, 2.5, 5, 10, 20].find((factor) => (high - low) / (base * factor) <= most);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++) found.push(n * step);
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e3)) return String(Number(value.toPrecision(4)));
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return Number((value / unit).toPrecision(4)) + letter;
  }
  return value.toExponential(2).replace(/\.?0+e/, "e");
}

const whole = (value) => Math.round(value).toLocaleString("en");

function nearest(line, x) {
  const xs = line[view.axis];
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
}

function span() {
  return view.range || [0, Math.max(1, data.last[view.axis])];
}

// The points of a line within the view, with a point made up at each edge that it crosses.
function visible(line, logarithmic) {
  const [low, high] = span(), xs = line[view.axis], found = [];
  const between = (i, x) => [x, line.values[i - 1] + (line.values[i] - line.values[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])];
  for (let i = 0; i < xs.length; i++) {
    if (i > 0 && xs[i - 1] < low && xs[i] > low) found.push(between(i, low));
    if (xs[i] >= low && xs[i] <= high) found.push([xs[i], line.values[i]]);
    if (i > 0 && xs[i - 1] < high && xs[i] > high) found.push(between(i, high));
  }
  return found.filter(([, y]) => y !== null && (y > 0 || !logarithmic));
}

function upwards(points, height, wanted) {
  const values = points.flat().map(([, y]) => y), above = values.filter((y) => y > 0);
  const logarithmic = wanted && above.length > 0, used = logarithmic ? above : values;
  let low = used.reduce((a, b) => Math.min(a, b), Infinity), high = used.reduce((a, b) => Math.max(a, b), -Infinity);
  if (used.length === 0) [low, high] = [0, 1];
  if (logarithmic) {
    const margin = Math.max((high / low) ** 0.04, 1.02);
    return scale(low / margin, high * margin, height - BOTTOM, TOP, true);
  }
  const margin = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
  return scale(low >= 0 && low < 0.2 * high ? 0 : low - margin, high + margin, height - BOTTOM, TOP, false);
}

function draw(figure) {
  const width = figure.canvas.clientWidth, height = figure.height;
  if (width < LEFT + RIGHT + 20) return;
  figure.width = width;
  const svg = node(document.createDocumentFragment(), "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", figure.label);
  const across = figure.across = scale(...span(), LEFT, width - RIGHT, false);
  const points = figure.lines.map((line) => visible(line, figure.log));
  const up = figure.up = upwards(points, height, figure.log);
  for (const value of ticks(up, 5)) {
    const y = up.place(value);
    node(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y, y2: y });
    node(svg, "text", { x: LEFT - 8, y, "text-anchor": "end", "dominant-baseline": "middle" }, short(value));
  }
  for (const value of ticks(across, Math.max(2, Math.floor(width / 110)))) {
    node(svg, "text", { x: across.place(value), y: height - 10, "text-anchor": "middle" }, short(value));
  }
  node(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM });
  drawMarks(svg, across, height);
  figure.lines.forEach((line, i) => drawLine(svg, line, points[i], across, up));
  figure.cursor = node(svg, "line", { class: "cursor", y1: TOP, y2: height - BOTTOM });
  figure.band = node(svg, "rect", { class: "band", y: TOP, height: height - BOTTOM - TOP, width: 0 });
  figure.canvas.replaceChildren(svg);
}

function drawMarks(svg, across, height) {
  const lines = {}, letters = [];
  let free = 0;
  for (const mark of data.marks) {
    const value = mark[view.axis], x = across.place(value), tick = mark.kind === "save";
    if (value < across.low || value > across.high) continue;
    lines[mark.kind] = (lines[mark.kind] || "") + `M${x.toFixed(1)} ${tick ? height - BOTTOM - 6 : TOP - 4}V${height - BOTTOM}`;
    if (tick || x < free) continue;
    letters.push([mark, x]);
    free = x + LETTER_WIDTH;
  }
  for (const kind in lines) node(svg, "path", { d: lines[kind], class: `mark ${kind}` });
  for (const [mark, x] of letters) {
    const group = node(svg, "g", { class: `mark ${mark.kind}` });
    const text = node(group, "text", { x, y: TOP - 7, "text-anchor": "middle" });
    node(text, "title", {}, mark.text);
    text.append(mark.letter);
  }
}

function drawLine(svg, line, points, across, up) {
  const places = points.map(([x, y]) => `${across.place(x).toFixed(1)},${up.place(y).toFixed(1)}`);
  node(svg, "polyline", { points: places.join(" "), class: `line color${line.color} dash${line.dash}` });
  if (points.length > 40) return;
  for (const place of places) {
    const [cx, cy] = place.split(",");
    node(svg, "circle", { cx, cy, r: 2.5, class: `dot color${line.color}` });
  }
}

function read(figure) {
  if (!figure.across) return;
  const at = view.at, isShown = at !== null && at >= figure.across.low && at <= figure.across.high;
  figure.cursor.setAttribute("class", isShown ? "cursor shown" : "cursor");
  if (!isShown) {
    figure.readout.textContent = "";
    return;
  }
  const place = figure.across.place(at), near = (x) => Math.abs(figure.across.place(x) - place) <= NEAR;
  figure.cursor.setAttribute("x1", place);
  figure.cursor.setAttribute("x2", place);
  const told = figure.lines.map((line) => {
    const i = nearest(line, at), x = line[view.axis][i];
    return `${line.label} ${short(line.values[i])}${near(x) || whole(x) === whole(at) ? "" : ` (at ${whole(x)})`}`;
  });
  const marks = data.marks.filter((mark) => near(mark[view.axis])).slice(0, 3).map((mark) => mark.text);
  const unit = view.axis === "steps" ? "step" : "tokens";
  figure.readout.textContent = [`${unit} ${whole(at)}: ${told.join(", ")}`, ...marks].join(" | ");
}

const redraw = () => figures.forEach((figure) => { draw(figure); read(figure); });
const point = (at) => { view.at = at; figures.forEach(read); };

function zoom(range) {
  const last = Math.max(1, data.last[view.axis]);
  if (range !== null) {
    const low = Math.max(0, range[0]), high = Math.min(last, range[1]);
    range = low <= 0 && high >= last ? null : [low, Math.max(high, low + last * 1e-6)];
  }
  view.range = range;
  for (const button of document.querySelectorAll(".reset")) button.disabled = range === null;
  redraw();
}

function pan(at) {
  const [low, high] = span();
  if (at < low || at > high) zoom([at - (high - low) / 2, at + (high - low) / 2]);
  point(at);
}

function key(figure, event) {
  const line = figure.lines[0], [low, high] = span(), middle = view.at === null ? (low + high) / 2 : view.at;
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
  if (move && line) {
    const xs = line[view.axis], from = view.at === null ? nearest(line, low) - move : nearest(line, view.at);
    pan(xs[Math.min(xs.length - 1, Math.max(0, from + move * (event.shiftKey ? 10 : 1)))]);
  } else if (event.key === "Home" || event.key === "End") {
    point(event.key === "Home" ? low : high);
  } else if (factor) {
    zoom([middle - (middle - low) * factor, middle + (high - middle) * factor]);
    point(middle);
  } else if (event.key === "Escape" || event.key === "0") {
    zoom(null);
  } else {
    return;
  }
  event.preventDefault();
}

function listen(figure) {
  const { canvas } = figure;
  let from = null;
  const place = (event) => event.clientX - canvas.getBoundingClientRect().left;
  const inside = (event) => Math.min(figure.width - RIGHT, Math.max(LEFT, place(event)));
  canvas.addEventListener("pointermove", (event) => {
    const x = inside(event);
    if (from !== null) {
      figure.band.setAttribute("x", Math.min(from, x));
      figure.band.setAttribute("width", Math.abs(x - from));
    }
    point(figure.across.value(x));
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = inside(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    const x = inside(event), begun = from;
    from = null;
    figure.band.setAttribute("width", 0);
    if (begun !== null && Math.abs(x - begun) > 8) {
      zoom([figure.across.value(Math.min(x, begun)), figure.across.value(Math.max(x, begun))]);
    }
  });
  canvas.addEventListener("pointercancel", () => { from = null; figure.band.setAttribute("width", 0); });
  canvas.addEventListener("pointerleave", () => { if (from === null) point(null); });
  canvas.addEventListener("dblclick", () => zoom(null));
  canvas.addEventListener("keydown", (event) => key(figure, event));
  figure.element.querySelector(".log").addEventListener("change", (event) => {
    figure.log = event.target.checked;
    draw(figure);
    read(figure);
  });
  new ResizeObserver(() => { if (canvas.clientWidth !== figure.width) { draw(figure); read(figure); } }).observe(canvas);
}

for (const choice of document.querySelectorAll("input[name=axis]")) {
  choice.addEventListener("change", () => { view.axis = choice.value; view.at = null; zoom(null); });
}
for (const button of document.querySelectorAll(".reset")) button.addEventListener("click", () => zoom(null));
redraw();
figures.forEach(listen);
