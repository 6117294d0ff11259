// The report's charts: two phases on one axis, read by pointing, by touch and by arrow keys. Their data stand in a script
// element of type JSON. Names are put in as text, never as markup. The page's script is this file and then page.js.

const $ = (id) => document.getElementById(id);
const SVG = $("svg").namespaceURI;
const data = JSON.parse($("chart-data").textContent);
const hiddenAgents = new Set();
const charts = new Map(); // figure element -> chart that is drawn in it

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child != null));
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
}

// ------------------------------------------------------------------------------------------------------- numbers

const short = (value) => (value == null ? "–" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4)));
const whole = (value) => value.toLocaleString("en-US");

function count(value) {
  for (const [factor, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (value >= factor) return +(value / factor).toPrecision(3) + unit;
  return String(+value.toPrecision(3));
}

function ticks(low, high, most = 5) {
  const step0 = (high - low) / most, power = 10 ** Math.floor(Math.log10(step0));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= step0 * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

// -------------------------------------------------------------------------------------------------------- charts
// A chart has two phases on one axis, each in its own unit and on its own linear scale, with the hand-over between.
// lines: {agent, name, x: [0..1], at: [text], mean, low, high, runs: [{name, href, y}]}; agent is null on a run's page.

function phases(offline, online, share) {
  const left = offline && online ? share : offline ? 1 : 0;
  return { left, offline, online, at: (isOnline, step) => (isOnline ? left + (step / Math.max(1, online)) * (1 - left) : (step / Math.max(1, offline)) * left) };
}

const place = (isOnline, step) => (isOnline ? `online step ${whole(step)}` : `offline update ${whole(step)}`);

let active = null; // the chart that shows the tooltip

class Chart {
  constructor(figure, spec) {
    this.figure = figure;
    this.spec = spec;
    this.width = 0;
    figure.tabIndex = 0;
    figure.setAttribute("role", "group");
    figure.addEventListener("pointermove", (event) => this.point(event));
    figure.addEventListener("pointerdown", (event) => {
      // A finger cannot hover: its first press tells, a second one on the same line opens.
      const before = this.chosen?.run;
      this.point(event);
      this.opens = event.pointerType === "mouse" || (before && before === this.chosen?.run);
    });
    figure.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
    figure.addEventListener("blur", () => this.leave());
    figure.addEventListener("click", (event) => event.detail && this.open());
    figure.addEventListener("keydown", (event) => this.key(event));
  }

  range() {
    if (this.spec.unit) return [-0.03, 1.03];
    let low = Infinity, high = -Infinity;
    const widen = (value) => { if (value != null) { low = Math.min(low, value); high = Math.max(high, value); } };
    this.spec.references.forEach(widen);
    for (const line of this.spec.lines) {
      line.runs.forEach((run) => run.y.forEach(widen));
      if (!line.runs.length) line.mean.forEach(widen);
    }
    if (low > high) return [0, 1];
    const margin = 0.05 * (high - low) || Math.abs(high) * 0.05 || 1;
    return [low - margin, high + margin];
  }

  height(width) {
    return Math.round(this.spec.height || Math.min(380, Math.max(150, width * (width < 330 ? 0.72 : 0.5))));
  }

  // Room for the drawing, so that nothing moves when it comes.
  reserve(width) {
    if (width >= 40) this.figure.append(element("div", { class: "plot", style: `height: ${this.height(width)}px` }));
  }

  draw(width) {
    if (width < 40 || width === this.width) return; // not on the screen
    this.width = width;
    const { spec } = this, narrow = width < 330;
    const height = this.height(width);
    const [low, high] = this.range();
    const marks = spec.unit ? [0, 0.25, 0.5, 0.75, 1] : ticks(low, high, narrow ? 4 : 5);
    const label = (value) => (spec.unit && value % 0.5 ? "" : Math.abs(value) >= 1e5 ? value.toExponential(0) : String(+value.toPrecision(6)));
    const left = 12 + 6.4 * Math.max(...marks.map((value) => label(value).length)), right = 12, top = 8;
    const bottom = narrow ? 20 : 36;
    const inner = { left, right: width - right, top, bottom: height - bottom };
    this.x = (value) => inner.left + value * (inner.right - inner.left);
    this.y = (value) => inner.bottom - ((value - low) / (high - low)) * (inner.bottom - inner.top);
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const value of marks) {
      svg.append(shape("line", { class: "grid", x1: inner.left, x2: inner.right, y1: this.y(value), y2: this.y(value) }));
      svg.append(shape("text", { x: inner.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, label(value)));
    }
    for (const value of spec.references) svg.append(shape("line", { class: "reference", x1: inner.left, x2: inner.right, y1: this.y(value), y2: this.y(value) }));
    this.axis(svg, inner, height, narrow);
    const clip = `clip${(Chart.number = (Chart.number || 0) + 1)}`;
    const clipPath = shape("clipPath", { id: clip });
    clipPath.append(shape("rect", { x: inner.left - 4, y: inner.top - 4, width: inner.right - inner.left + 8, height: inner.bottom - inner.top + 8 }));
    svg.append(clipPath);
    const body = shape("g", { "clip-path": `url(#${clip})` });
    spec.lines.forEach((line) => body.append(this.back(line)));
    [...spec.lines].reverse().forEach((line) => body.append(this.front(line)));
    svg.append(body);
    // What is pointed at lies in a layer of its own: thousands of lines below it need not be painted again.
    this.overlay = shape("svg", { class: "over", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    this.figure.querySelector(".plot")?.remove();
    this.figure.append(element("div", { class: "plot" }, svg, this.overlay));
    this.svg = svg;
    this.chosen = null;
  }

  axis(svg, inner, height, narrow) {
    svg.append(shape("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }));
    if (!this.spec.phases) {
      for (const value of [0, 0.25, 0.5, 0.75, 1]) svg.append(shape("text", { x: this.x(value), y: inner.bottom + 14, "text-anchor": "middle" }, String(value)));
      if (!narrow) svg.append(shape("text", { x: this.x(0.5), y: height - 6, "text-anchor": "middle" }, this.spec.axis));
      return;
    }
    const { left, offline, online } = this.spec.phases;
    const marks = [];
    if (offline) marks.push([0, "0", "start"]);
    if (offline && online) {
      svg.append(shape("line", { class: "handover", x1: this.x(left), x2: this.x(left), y1: inner.top, y2: inner.bottom }));
      marks.push([left, `${count(offline)} | 0`, "middle"]);
    } else marks.push(offline ? [1, count(offline), "end"] : [0, "0", "start"]);
    if (online) marks.push([1, count(online), "end"]);
    if (!narrow && offline && inner.right * left > 160) marks.push([left / 2, count(offline / 2), "middle"]);
    if (!narrow && online) marks.push([left + (1 - left) / 2, count(online / 2), "middle"]);
    for (const [value, text, anchor] of marks) svg.append(shape("text", { x: this.x(value), y: inner.bottom + 14, "text-anchor": anchor }, text));
    if (narrow) return;
    const names = [];
    if (offline) names.push([left / 2, inner.right * left > 220 ? "offline (gradient updates)" : "offline updates"]);
    if (online) names.push([left + (1 - left) / 2, inner.right * (1 - left) > 220 ? "online (environment steps)" : "online steps"]);
    for (const [value, text] of names) svg.append(shape("text", { x: this.x(value), y: height - 6, "text-anchor": "middle" }, text));
  }

  path(xs, ys) {
    let text = "", pen = "M";
    for (let k = 0; k < xs.length; k++) {
      if (ys[k] == null) { pen = "M"; continue; }
      text += `${pen}${this.x(xs[k]).toFixed(1)} ${this.y(ys[k]).toFixed(1)}`;
      pen = "L";
    }
    return text;
  }

  back(line) {
    const group = shape("g", line.agent == null ? {} : { "data-agent": line.agent });
    const look = data.agents[line.agent], all = this.spec.lines.length;
    if (line.low) {
      // One piece of band for each stretch without gaps.
      let start = 0, text = "";
      const bounded = (k) => k < line.x.length && line.low[k] != null && line.high[k] != null;
      while (start < line.x.length) {
        if (!bounded(start)) { start++; continue; }
        let end = start;
        while (bounded(end)) end++;
        const xs = line.x.slice(start, end);
        text += this.path(xs, line.high.slice(start, end)) + this.path(xs.slice().reverse(), line.low.slice(start, end).reverse()).replace("M", "L") + "Z";
        start = end;
      }
      group.append(shape("path", { d: text, fill: look.color, "fill-opacity": Math.max(0.06, 0.2 - 0.02 * all) }));
    }
    if (line.runs.length) {
      const opacity = Math.min(0.4, Math.max(0.04, 6 / (line.runs.length * all)));
      group.append(shape("path", { class: "runs", d: line.runs.map((run) => this.path(line.x, run.y)).join(""), stroke: look.color, "stroke-opacity": opacity }));
    }
    return group;
  }

  front(line) {
    const group = shape("g", line.agent == null ? {} : { "data-agent": line.agent });
    if (line.agent == null) {
      group.append(shape("path", { class: "one", d: this.path(line.x, line.mean) }));
      if (line.x.length < 40) for (const k of line.x.keys()) if (line.mean[k] != null) group.append(shape("circle", { cx: this.x(line.x[k]), cy: this.y(line.mean[k]), r: 2, fill: "var(--ink)" }));
      return group;
    }
    const look = data.agents[line.agent];
    group.append(shape("path", { class: "mean", d: this.path(line.x, line.mean), stroke: look.color, "stroke-dasharray": look.dash }));
    const step = Math.max(1, Math.floor(line.x.length / 7));
    const first = Math.floor((this.spec.lines.indexOf(line) * step) / this.spec.lines.length);
    for (let k = first; k < line.x.length; k += step) if (line.mean[k] != null) {
      group.append(shape("path", { d: look.marker, transform: `translate(${this.x(line.x[k]).toFixed(1)} ${this.y(line.mean[k]).toFixed(1)})`, fill: look.color, stroke: "var(--paper)", "stroke-width": 0.5 }));
    }
    return group;
  }

  // The nearest point of a mean or a run to a place in pixels; a mean wins where both are near.
  nearest(px, py) {
    let best = null, bestDistance = 26;
    const withRuns = !document.body.classList.contains("no-runs");
    for (const line of this.spec.lines) {
      if (hiddenAgents.has(line.agent)) continue;
      for (let k = 0; k < line.x.length; k++) {
        const dx = this.x(line.x[k]) - px;
        if (Math.abs(dx) > bestDistance) continue;
        const consider = (value, run, weight) => {
          if (value == null) return;
          const distance = Math.hypot(dx, this.y(value) - py) * weight;
          if (distance < bestDistance) { bestDistance = distance; best = { line, k, run, value }; }
        };
        consider(line.mean[k], null, 0.6);
        if (withRuns) for (const run of line.runs) consider(run.y[k], run, 1);
      }
    }
    return best;
  }

  point(event) {
    if (!this.svg) return;
    const box = this.svg.getBoundingClientRect();
    this.choose(this.nearest(event.clientX - box.left, event.clientY - box.top));
  }

  choose(found) {
    if (found && this.chosen && found.line === this.chosen.line && found.k === this.chosen.k && found.run === this.chosen.run) return;
    this.chosen = found;
    active = this;
    this.overlay.replaceChildren();
    this.figure.style.cursor = found?.run?.href ? "pointer" : "";
    if (!found) { $("tooltip").hidden = true; return; }
    const { line, k, run, value } = found;
    const color = line.agent == null ? "var(--ink)" : data.agents[line.agent].color;
    this.overlay.append(shape("path", { class: "marked", d: this.path(line.x, run ? run.y : line.mean), stroke: color }));
    this.overlay.append(shape("circle", { cx: this.x(line.x[k]), cy: this.y(value), r: 5, fill: color, stroke: "#fff", "stroke-width": 1.5, "pointer-events": "none" }));
    const box = this.svg.getBoundingClientRect();
    const number = this.spec.unit ? (value) => value.toFixed(3) : short;
    const alike = line.low && line.low[k] === line.high[k]; // no spread, and no band
    const limits = !run && line.low && line.low[k] != null && !alike ? ` [${number(line.low[k])}, ${number(line.high[k])}]` : "";
    const size = line.runs.filter((member) => member.y[k] != null).length;
    const title = run ? run.name : !line.runs.length ? line.name : `${line.name}, mean of ${size} ${size === 1 ? "run" : "runs"}`;
    showTooltip(box.left + this.x(line.x[k]), box.top + this.y(value), title, [`${this.spec.measure} ${number(value)}${limits}`, line.at[k]]);
  }

  leave() {
    if (this.chosen) this.choose(null);
  }

  open() {
    if (this.opens && this.chosen?.run?.href) location.hash = this.chosen.run.href;
  }

  key(event) {
    const lines = this.spec.lines.filter((line) => !hiddenAgents.has(line.agent) && line.mean.some((value) => value != null));
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key === "Escape") return this.leave();
    if (!moves[event.key] || !lines.length) return;
    event.preventDefault();
    const [across, along] = moves[event.key];
    const old = this.chosen && lines.includes(this.chosen.line) ? this.chosen : null;
    const line = lines[old ? (lines.indexOf(old.line) + across + lines.length) % lines.length : 0];
    const defined = [...line.x.keys()].filter((k) => line.mean[k] != null);
    const from = old ? defined.reduce((a, b) => (Math.abs(line.x[b] - old.line.x[old.k]) < Math.abs(line.x[a] - old.line.x[old.k]) ? b : a)) : defined[0];
    const k = old ? defined[Math.min(defined.length - 1, Math.max(0, defined.indexOf(from) + along))] : from;
    this.choose({ line, k, run: null, value: line.mean[k] });
  }
}

function showTooltip(x, y, title, lines) {
  const tip = $("tooltip");
  tip.replaceChildren(element("b", {}, title), ...lines.map((line) => element("div", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const top = y - height - 12 < 4 ? y + 14 : y - height - 12;
  tip.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, x - width / 2))}px`;
  tip.style.top = `${Math.max(4, Math.min(innerHeight - height - 4, top))}px`;
}

// Charts are drawn when they come near the screen, again when their width changes, and all before printing.
const near = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && drawChart(entry.target)), { rootMargin: "400px" });
const sized = new ResizeObserver((entries) => entries.forEach((entry) => charts.get(entry.target)?.width && drawChart(entry.target)));

function innerWidthOf(figure) {
  const style = getComputedStyle(figure);
  return Math.floor(figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
}

function drawChart(figure) {
  charts.get(figure)?.draw(innerWidthOf(figure));
}

function addChart(figure, spec) {
  const chart = new Chart(figure, spec);
  charts.set(figure, chart);
  if (figure.isConnected) chart.reserve(innerWidthOf(figure));
  near.observe(figure);
  sized.observe(figure);
}

function suiteSpec(suite, task) {
  const cells = new Map();
  for (const cell of suite.cells) if (task < 0 || cell.task === task) cells.set(cell.agent, [...(cells.get(cell.agent) || []), cell]);
  const scale = phases(suite.offline, suite.online, suite.share);
  const lines = suite.curves.filter((curve) => curve.task === task).sort((a, b) => a.agent - b.agent).map((curve) => {
    const { name, code } = data.agents[curve.agent], [updates, steps] = suite.grids[curve.agent];
    // Without an offline phase the only offline point is online step 0.
    const points = updates.at(-1) ? [...updates.map((step) => [0, step]), ...steps.slice(1).map((step) => [1, step])] : steps.map((step) => [1, step]);
    const single = cells.get(curve.agent).flatMap((cell) => cell.seeds.map((seed, k) => {
      const path = `${suite.name}/${suite.tasks[cell.task]}/${code}/seed_${String(seed).padStart(3, "0")}`;
      return { name: `${name} on ${suite.tasks[cell.task]}, seed ${seed}`, href: `#/run/${encodeURIComponent(path)}`, y: cell.scores[k] };
    }));
    return { agent: curve.agent, name, x: points.map(([online, step]) => scale.at(online, step)), at: points.map(([online, step]) => place(online, step)), mean: curve.mean, low: curve.low, high: curve.high, runs: single };
  });
  const first = Math.max(0, task);
  return { lines, phases: scale, unit: suite.unit_scale[first], references: suite.references[first], measure: task < 0 ? suite.measure : suite.measures[task] };
}

// The share of runs above each level: steps, drawn from point to point.
function profileSpec(suite) {
  const lines = suite.profiles.map(({ agent, mean, low, high }) => {
    const at = suite.thresholds.map((level) => `above ${level.toFixed(2)}`);
    return { agent, name: data.agents[agent].name, x: suite.thresholds, at, mean, low, high, runs: [] };
  });
  return { lines: lines.sort((a, b) => a.agent - b.agent), axis: "final success rate τ", unit: true, references: [], measure: "share of runs" };
}

for (const section of document.querySelectorAll("[data-suite]")) {
  const suite = data.suites[section.dataset.suite];
  for (const figure of section.querySelectorAll("figure.chart[data-profile]")) addChart(figure, profileSpec(suite));
  for (const figure of section.querySelectorAll("figure.chart[data-task]")) addChart(figure, suiteSpec(suite, Number(figure.dataset.task)));
}
