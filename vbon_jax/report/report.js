"use strict";
// The page's own behaviour. Texts are set as text, never as markup.
const page = JSON.parse(document.getElementById("data").textContent);
const darkMode = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();
const chosen = new Set();

function element(tag, properties, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}

// ---------------------------------------------------------------- figures

function specification(name) {
  const { spec, uses } = structuredClone(page.specs[name]);
  spec.width = "container";
  spec.autosize = { type: "fit-x", contains: "padding" };
  // A view writes on its data: each has a copy.
  spec.datasets = Object.fromEntries(uses.map((of) => [of, structuredClone(page.datasets[of] ?? [])]));
  if (name === "training") {
    const metric = document.getElementById("metric").value;
    spec.datasets = { curves: curveRows(metric) };
    spec.encoding.y.title = metric;
  }
  return spec;
}

function curveRows(metric) {
  const rows = [];
  for (const [run, grid, values] of page.curves.metrics[metric] ?? []) {
    const method = page.curves.methods[run];
    page.curves.grids[grid].forEach((step, at) => rows.push({ run, method, step, value: values[at] }));
  }
  return rows;
}

async function draw(target) {
  const name = target.dataset.figure;
  views.get(name)?.finalize();
  const embedded = await vegaEmbed(target, specification(name), {
    ast: true, // expressions are interpreted: the page may not evaluate text as code
    renderer: "svg",
    actions: false,
    config: page.configs[darkMode.matches ? "dark" : "light"],
  });
  views.set(name, embedded);
  await embedded.view.signal("chosen", [...chosen]).runAsync();
  target.dataset.drawn = darkMode.matches ? "dark" : "light";
}

const drawing = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    drawing.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "800px" });

const plots = [...document.querySelectorAll(".plot")];
const metrics = document.getElementById("metric");
if (metrics) {
  for (const name of Object.keys(page.curves.metrics)) metrics.append(element("option", { textContent: name }));
  metrics.value = page.curves.first;
  metrics.addEventListener("change", () => draw(document.querySelector("[data-figure=training]")));
}
for (const target of plots) {
  const height = page.specs[target.dataset.figure].spec.height ?? page.configs.light.view.continuousHeight;
  target.style.minHeight = `${height + 50}px`; // its room, so that the page does not jump
  drawing.observe(target);
}
const redraw = () => plots.filter((target) => target.dataset.drawn).forEach(draw);
darkMode.addEventListener("change", redraw);
addEventListener("beforeprint", () => plots.filter((target) => !target.dataset.drawn).forEach(draw));

// ---------------------------------------------------------------- legend

const SHAPES = {
  "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
  "square": "M-4.5,-4.5h9v9h-9z",
  "triangle-up": "M0,-5.2L5.6,4.6H-5.6z",
  "triangle-down": "M0,5.2L5.6,-4.6H-5.6z",
  "triangle-right": "M5.2,0L-4.6,5.6V-5.6z",
  "triangle-left": "M-5.2,0L4.6,5.6V-5.6z",
  "diamond": "M0,-6.5L4.5,0L0,6.5L-4.5,0z",
  "cross": "M-2,-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
};

function symbol(path, attributes) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "-7 -7 14 14");
  svg.setAttribute("aria-hidden", "true");
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
  drawn.setAttribute("d", path);
  for (const [name, value] of Object.entries(attributes)) drawn.setAttribute(name, value);
  svg.append(drawn);
  return svg;
}

const legend = document.getElementById("legend");
for (const { name, colour, shape } of page.legend) {
  const button = element("button", { type: "button" }, symbol(SHAPES[shape], { fill: colour }), name);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    chosen.has(name) ? chosen.delete(name) : chosen.add(name);
    button.setAttribute("aria-pressed", chosen.has(name));
    legend.classList.toggle("choosing", chosen.size > 0);
    for (const { view } of views.values()) view.signal("chosen", [...chosen]).runAsync();
  });
  legend.append(button);
}
if (page.best) {
  const stroke = { stroke: "currentColor", fill: "none" };
  const marks = [
    ["M-7,0H7", { ...stroke, "stroke-width": 1.6 }, "Best-of-N on the cache"],
    ["M-7,0H7", { ...stroke, "stroke-width": 6, "stroke-opacity": 0.3 }, "Best-of-N, continuous rewards"],
    ["M-4,-4L4,4M-4,4L4,-4", { ...stroke, "stroke-width": 1.6 }, "Best-of-N at whole N"],
    ["M0,-6L1.4,-1.9L5.7,-1.9L2.3,.7L3.5,4.9L0,2.4L-3.5,4.9L-2.3,.7L-5.7,-1.9L-1.4,-1.9Z",
      { fill: "currentColor" }, "reference"],
  ];
  for (const [path, attributes, name] of marks) {
    legend.append(element("span", {}, symbol(path, attributes), name));
  }
}

// ---------------------------------------------------------------- tables

function compare(one, other, down) {
  if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
  const numbers = [Number(one), Number(other)];
  const order = numbers.some(Number.isNaN)
    ? one.localeCompare(other, undefined, { numeric: true })
    : numbers[0] - numbers[1];
  return down ? -order : order;
}

function sort(table, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const column = header.cellIndex;
  const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.key, row]);
  keyed.sort((one, other) => compare(one[0], other[0], down));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function filter(table, text, output) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const content = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
  }
  output.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}

for (const region of document.querySelectorAll(".wide")) {
  const table = region.querySelector("table");
  const tools = region.previousElementSibling;
  const [input, output] = [tools.querySelector("input"), tools.querySelector("output")];
  for (const header of table.querySelectorAll("thead th")) {
    header.firstElementChild.addEventListener("click", () => sort(table, header));
  }
  input.addEventListener("input", () => filter(table, input.value, output));
  filter(table, input.value, output);
}

// ---------------------------------------------------------------- samples

const prompts = document.getElementById("prompt");
if (prompts) {
  const names = page.samples[0].columns.map(([name]) => name);
  const boxes = names.map((name, at) => {
    const box = element("input", { type: "checkbox", checked: at < 5 });
    box.addEventListener("change", show);
    document.getElementById("policies").append(element("label", {}, box, ` ${name}`));
    return box;
  });
  page.samples.forEach(({ prompt }, at) => {
    const start = prompt.length > 70 ? `${prompt.slice(0, 70)}…` : prompt;
    prompts.append(element("option", { value: at, textContent: `${at + 1}. ${start}` }));
  });
  prompts.addEventListener("change", show);
  document.getElementById("policy-filter").addEventListener("input", ({ target }) => {
    boxes.forEach((box, at) => {
      box.parentElement.hidden = !names[at].toLowerCase().includes(target.value.toLowerCase());
    });
  });
  function show() {
    const sample = page.samples[Number(prompts.value)];
    document.getElementById("prompt-text").textContent = sample.prompt;
    document.getElementById("shown-policies").textContent =
      `${boxes.filter((box) => box.checked).length} of ${names.length}`;
    document.getElementById("columns").replaceChildren(
      ...sample.columns.filter((_, at) => boxes[at].checked).map(([name, responses]) =>
        element("div", { className: "sample" }, element("h4", { textContent: name }),
          ...responses.map(([text, reward]) =>
            element("p", { className: "text", dir: "auto" },
              element("span", { className: "reward", textContent: reward }), text)))),
    );
  }
  show();
}
