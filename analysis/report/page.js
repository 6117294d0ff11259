// The report's page around its charts (charts.js): legends, sortable tables, pages of runs. Logs are put in as text.

let runs = null; // parsed when the first run is opened: it is the larger part

// ------------------------------------------------------------------------------------------------------- legends

const hideRules = document.head.appendChild(document.createElement("style"));

for (const button of document.querySelectorAll("[data-toggle]")) button.addEventListener("click", () => {
  const agent = Number(button.dataset.toggle);
  hiddenAgents.has(agent) ? hiddenAgents.delete(agent) : hiddenAgents.add(agent);
  hideRules.textContent = [...hiddenAgents].map((hidden) => `.chart [data-agent="${hidden}"]{display:none}`).join("");
  for (const other of document.querySelectorAll(`[data-toggle="${agent}"]`)) other.setAttribute("aria-pressed", String(!hiddenAgents.has(agent)));
});

for (const box of document.querySelectorAll("[data-runs]")) box.addEventListener("change", () => {
  document.body.classList.toggle("no-runs", !box.checked);
  for (const other of document.querySelectorAll("[data-runs]")) other.checked = box.checked;
});

// -------------------------------------------------------------------------------------------------------- tables

function sortTable(table, heading) {
  const column = [...heading.parentNode.children].indexOf(heading), body = table.tBodies[0];
  const numeric = heading.classList.contains("number");
  // Numbers begin with the largest, names with the first letter.
  const descending = heading.hasAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : numeric;
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const names = new Intl.Collator("en", { numeric: true });
  const value = (row) => {
    const cell = row.cells[column];
    if (!cell) return null;
    const text = cell.dataset.value ?? cell.textContent.trim();
    return numeric ? (text === "" || Number.isNaN(Number(text)) ? null : Number(text)) : text;
  };
  const rows = [...body.rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what is not defined stands last
    const order = numeric ? a - b : names.compare(a, b);
    return descending ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable"))
  for (const heading of table.tHead.rows[0].cells) heading.querySelector("button").addEventListener("click", () => sortTable(table, heading));

// --------------------------------------------------------------------------------------------------- page of a run

function definitions(entries) {
  return element("dl", {}, ...entries.filter(([, value]) => value !== undefined).map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value instanceof Node ? value : words(value)))));
}

// Numbers are rounded to what a reader takes in; settings keep six digits.
function words(value) {
  if (value === null || value === "") return "–";
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, inner]) => `${key} ${words(inner)}`).join(", ");
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1e4) return whole(Math.round(value));
  return String(+value.toPrecision(6));
}

// What a run measured, unlike what it was told: rates to three digits, seconds to one.
const measured = (value) => (typeof value !== "number" || Number.isInteger(value) ? value : Math.abs(value) >= 100 ? +value.toFixed(1) : +value.toPrecision(3));

function scalarFigure(name, parts, scale, note) {
  const line = { agent: null, name, x: [], at: [], mean: [], runs: [] };
  for (const { online, steps, values } of parts) {
    steps.forEach((step, k) => { line.x.push(scale.at(online, step)); line.at.push(place(online, step)); line.mean.push(values[k]); });
  }
  const figure = element("figure", { class: "chart", "aria-label": name }, element("figcaption", {}, name));
  addChart(figure, { lines: [line], phases: scale, references: [], measure: name.split(" (")[0], height: 170, ...note });
  return figure;
}

function scalarFigures(series, scale) {
  const byName = new Map();
  for (const [number, online, unit, differences, values, rows, bad] of series) {
    let step = 0;
    const name = runs.pool[number];
    const part = { online, steps: differences.map((difference) => (step += difference * unit)), values, rows, bad };
    byName.set(name, [...(byName.get(name) || []), part]);
  }
  return [...byName].map(([name, parts]) => {
    const drawn = parts.reduce((sum, part) => sum + part.values.length, 0), all = parts.reduce((sum, part) => sum + part.rows, 0);
    const bad = parts.reduce((sum, part) => sum + part.bad, 0);
    const notes = [drawn < all ? `${whole(drawn)} of ${whole(all)} rows` : "", bad ? `${whole(bad)} rows are not finite` : ""].filter(Boolean);
    return scalarFigure(notes.length ? `${name} (${notes.join(", ")})` : name, parts, scale);
  });
}

function runPage(run) {
  const grid = runs.pool[run.grid], starts = run.starts.map(({ shared, ...single }) => ({ ...runs.pool[shared], ...single }));
  const config = runs.pool[run.config], suite = data.suites[run.suite], dataset = runs.pool[run.dataset];
  const scale = phases(config.offline_updates, suite.online, suite.share);
  const code = config.variant ? `${config.agent}@${config.variant}` : config.agent;
  const label = data.agents.find((agent) => agent.code === code).name;
  const page = [
    element("a", { class: "back", href: "#/" }, "← Back to the report"),
    element("h1", {}, `${label} on ${config.task}, seed ${run.seed}`),
    element("p", { class: "facts" }, element("span", { class: `state ${run.state}` }, run.state), ` ${run.name}`),
  ];
  if (run.status.error) page.push(element("p", { class: "banner refused" }, run.status.error));
  if (run.status.warning) page.push(element("p", { class: "banner" }, run.status.warning));
  if (run.notes.length) page.push(element("ul", { class: "notes" }, ...run.notes.map((note) => element("li", {}, note))));

  if (run.log.length) page.push(element("h2", {}, "Last lines of the log"), run.log_of ? element("p", { class: "small" }, `From ${run.log_of}, the first run of its pack.`) : null, element("pre", { tabindex: 0 }, run.log.join("\n")));

  page.push(element("h2", {}, "Evaluations"));
  if (grid.at.length) {
    const parts = (values) => [0, 1].map((online) => {
      const of = grid.at.map((_, k) => k).filter((k) => grid.online[k] === online);
      return { online, steps: of.map((k) => grid.at[k]), values: of.map((k) => values[k]) };
    });
    const score = run.measure === "return" ? [] : [scalarFigure(run.measure, parts(run.score), scale, { unit: run.measure === "success rate" })];
    page.push(element("div", { class: "panels scalars" }, ...score, scalarFigure("mean return", parts(run.return), scale), scalarFigure("mean length", parts(run.length), scale)));
    const seeds = run.episode_seeds;
    page.push(element("p", { class: "small" }, `${config.eval_episodes} episodes at each of ${grid.at.length} points, ${config.episode_seeds === "own" ? "others at each, " : ""}episode seeds ${seeds[0]} to ${seeds[1]}.`));
  } else page.push(element("p", {}, "No evaluation has finished."));

  if (run.videos.length) {
    page.push(element("h3", {}, "Recorded episodes"), element("div", { class: "videos" }, ...run.videos.map((video) => {
      const film = video.still ? element("img", { src: video.data ?? video.file, alt: video.caption }) : element("video", { src: video.data ?? video.file, controls: "", loop: "", muted: "", playsinline: "", preload: "metadata" });
      return element("figure", {}, video.data ? film : element("a", { href: video.file }, `${video.file.split("/").pop()} (not inside this page)`), element("figcaption", { class: "small" }, video.caption));
    })));
  }
  for (const [title, series, none] of [["Training scalars", run.train, "None recorded."], ["Rates and shares of time", run.timing, "None recorded."]]) {
    const figures = scalarFigures(series, scale);
    const thinned = series.some(([, , , , values, rows]) => values.length < rows);
    page.push(element("h2", {}, title));
    if (thinned) page.push(element("p", { class: "small" }, "Down-sampled: of each stretch of rows the lowest and the highest are shown."));
    page.push(figures.length ? element("div", { class: "panels scalars" }, ...figures) : element("p", {}, none));
  }

  page.push(element("h2", {}, "Status"), definitions(Object.entries(run.status).map(([key, value]) => [key, measured(value)])));
  page.push(element("h2", {}, "Provenance"), definitions([["config hash", run.hash], ...Object.entries(dataset).map(([key, value]) => [`data set: ${key}`, value]), ...Object.entries(runs.pool[run.provenance])]));
  page.push(element("h3", {}, `Starts (${run.num_starts})`));
  if (starts.length < run.num_starts) page.push(element("p", { class: "small" }, `The first and the last ${starts.length - 1} are shown.`));
  const keys = [...new Set(starts.flatMap((start) => Object.keys(start)))].filter((key) => key !== "versions");
  const order = ["started_at", "seconds", "resumed_from", "commit", "dirty_diff_hash", "device", "device_type", "host", "engine", "threads", "pack"];
  keys.sort((a, b) => (order.indexOf(a) + 1 || 99) - (order.indexOf(b) + 1 || 99) || (a < b ? -1 : 1));
  const cells = (start) => keys.map((key) => element("td", {}, key === "commit" && start[key] ? start[key].slice(0, 12) : words(measured(start[key] ?? null))));
  page.push(element("div", { class: "scroll", role: "region", "aria-label": "Starts", tabindex: 0 }, element("table", {}, element("thead", {}, element("tr", {}, ...keys.map((key) => element("th", { scope: "col", style: "padding:6px 12px;font-weight:600" }, key)))), element("tbody", {}, ...starts.map((start) => element("tr", {}, ...cells(start)))))));
  const versions = [...new Set(starts.map((start) => words(start.versions ?? null)))];
  page.push(definitions(versions.filter(Boolean).map((text, k) => [versions.length > 1 ? `versions (${k + 1})` : "versions", text])));

  const { agent_config: settings = {}, ...rest } = config;
  page.push(element("h2", {}, "Config"), definitions(Object.entries(rest)), element("h3", {}, `Settings of ${label}`), definitions(Object.entries(settings)));
  return page.filter(Boolean);
}

const reportTitle = document.title;
let before = null; // where the report was scrolled to when a run was opened

function route() {
  const wanted = location.hash.startsWith("#/run/") ? decodeURIComponent(location.hash.slice(6)) : null;
  const page = $("run"), report = $("report");
  for (const figure of page.querySelectorAll("figure.chart")) { near.unobserve(figure); sized.unobserve(figure); charts.delete(figure); }
  page.replaceChildren();
  $("tooltip").hidden = true;
  if (wanted === null) {
    page.hidden = true;
    if (report.hidden) {
      report.hidden = false;
      document.title = reportTitle;
      const target = location.hash.length > 1 ? $(location.hash.slice(1)) : null;
      if (before !== null && !target) scrollTo(0, before);
      else target?.scrollIntoView();
    }
    return;
  }
  runs ??= JSON.parse($("run-data").textContent);
  const run = runs.runs.find((candidate) => candidate.name === wanted);
  if (!report.hidden) before = scrollY;
  report.hidden = true;
  page.hidden = false;
  document.title = run ? `${run.name}: run` : "No such run";
  page.append(...(run ? runPage(run) : [element("a", { class: "back", href: "#/" }, "← Back to the report"), element("h1", {}, "No such run"), element("p", {}, `There is no run ${wanted} in this report.`)]));
  scrollTo(0, 0);
  page.focus({ preventScroll: true });
}

addEventListener("hashchange", route);
addEventListener("keydown", (event) => event.key === "Escape" && ($("tooltip").hidden = true));
addEventListener("pointerdown", (event) => active && !active.figure.contains(event.target) && active.leave());
addEventListener("scroll", () => ($("tooltip").hidden = true), { passive: true });
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("section:not(#runs) details:not([open])")) { details.open = true; details.dataset.closed = ""; }
  for (const figure of charts.keys()) drawChart(figure);
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-closed]")) { details.open = false; delete details.dataset.closed; }
});
route();
