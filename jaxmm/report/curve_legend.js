// How curves are told apart: colours, dashes, legends; and their numbers as a table.

function colour(curve) {
  if (curve.key) return `var(--c-${curve.key})`;
  return `oklch(var(--deep) var(--deep-chroma) ${store.hues[(many ? curve.run : curve.place) % store.hues.length]})`;
}

// Of several runs a name has its dashes; of one, curves do whose colours have come before. Classes of attention have
// some beside their colours: three of them are of one brightness.
const CLASS_DASHES = { separators: "6 4", first: "2 3", earlier: "9 3 2 3" };
function dashes({ dashed, key, place }) {
  if (key) return CLASS_DASHES[key] ?? "";
  return dashed ? "1.5 4" : DASHES[(many ? place : Math.floor(place / store.hues.length)) % DASHES.length];
}

function fullName({ name, run, dashed }) {
  const own = dashed ? `${name}, asked` : name;
  return many ? [own, store.runs[run].name].filter(Boolean).join(" · ") : own;
}

// The sign of a curve in a legend: a piece of its line.
function piece(curve, stroke = colour(curve), dash = dashes(curve)) {
  const svg = drawn("svg", { class: "piece", viewBox: "0 0 24 10", "aria-hidden": "true" });
  const line = drawn("path", { d: "M1 5H23", "stroke-dasharray": dash });
  line.style.stroke = stroke;
  svg.append(line);
  if (curve.dots) {
    const dot = drawn("circle", { cx: 12, cy: 5, r: 3.5 });
    dot.style.fill = stroke;
    svg.append(dot);
  }
  return svg;
}

// Of one run a button for each curve; of several one for each run, by colour, and one for each name, by dashes.
function curveLegend(chart) {
  const list = make("ul", "legend"), { curves } = chart.spec, ink = "var(--soft-ink)";
  const add = (key, name, ...signs) => {
    const item = make("li"), button = make("button", "line");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide";
    button.append(piece(...signs), make("span", "", name));
    button.addEventListener("click", () => {
      if (!chart.hidden.delete(key)) chart.hidden.add(key);
      button.setAttribute("aria-pressed", !chart.hidden.has(key));
      chart.draw();
    });
    item.append(button);
    list.append(item);
  };
  const first = (of) => curves.filter((curve, n) => curves.findIndex((one) => of(one) === of(curve)) === n);
  const names = first((curve) => curve.name);
  if (many) for (const curve of first(({ run }) => run)) add(`run ${curve.run}`, store.runs[curve.run].name, { ...curve, dots: false }, colour(curve), "");
  if (!many) names.forEach((curve) => add(curve.name, curve.name, curve));
  else if (names.length > 1) names.forEach((curve) => add(curve.name, curve.name || chart.spec.title.toLowerCase(), curve, ink));
  else if (names[0].name) list.append(make("li", "only", names[0].name));
  if (curves.some(({ dashed }) => dashed)) list.append(make("li", "only", "dotted: asked for"));
  return list;
}

function curveNumbers(chart) {
  chart.details = make("details");
  chart.details.append(make("summary", "", "Numbers"));
  chart.details.addEventListener("toggle", () => fillNumbers(chart));
  return chart.details;
}

// A table of what is drawn: made when it is opened, as it may be long.
function fillNumbers(chart) {
  chart.details.querySelector(".wide")?.remove();
  if (!chart.details.open) return;
  const most = 500, [from, to] = chart.range(), rows = new Map();
  const shown = chart.shown;
  shown.forEach((curve, c) => curve.x.forEach((step, n) => {
    if (step < from || step > to) return;
    if (!rows.has(step)) rows.set(step, []);
    rows.get(step)[c] = curve.y[n];
  }));
  const steps = [...rows.keys()].sort((a, b) => a - b), each = Math.ceil(steps.length / most);
  const table = make("table"), head = make("tr"), body = make("tbody");
  head.append(...["step", ...shown.map(fullName)].map((name) => {
    const cell = make("th", "", name);
    cell.scope = "col";
    return cell;
  }));
  for (const step of steps.filter((_, n) => n % each === 0)) {
    const row = make("tr");
    row.append(make("td", "", number(step)), ...shown.map((_, c) => make("td", "", written(rows.get(step)[c], chart.spec.form))));
    body.append(row);
  }
  const top = make("thead"), box = make("div", "wide tall");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `Numbers of ${chart.spec.title}`);
  top.append(head);
  table.append(top, body);
  box.append(table);
  if (each > 1) box.append(make("p", "note", `Every ${number(each)}th of ${number(steps.length)} steps; zoom in to see all.`));
  chart.details.append(box);
}
