// All of a document's content is set as text: nothing from data is ever parsed as markup.
const panel = one("panel"), scroller = document.querySelector(".scroll");
const bars = [...document.querySelectorAll(".doc")];
const narrow = matchMedia("(max-width: 1099px)");
let opened = -1, current = 0;

const range = ([first, last]) => (last - first === 1 ? `${number(first)}` : `${number(first)} to ${number(last - 1)}`);
const sign = (kind) => ({ picture: " ▣ ", video: " ▶ ", audio: " ♪ " })[kind] ?? " ";
const pictures = (doc) => doc.spans.filter((span) => span[0] === "picture");
const plain = (doc) => doc.spans.map((span) => (span[0] === "text" ? span[4] : sign(span[0]))).join("");

function facts(doc) {
  const [first, last, length] = doc.piece, rows = [];
  const whole = first === 0 && last === length;
  rows.push(["origin", doc.origin]);
  rows.push(["source", `${store.sources[doc.source]}, pass ${doc.pass}`]);
  rows.push(["place", `batch ${doc.batch}, row ${doc.row}, document ${doc.segment}: positions ${range(doc.place)}`]);
  rows.push(["piece", whole ? `whole: ${plural(length, "token")}` : `a part: tokens ${range([first, last])} of ${number(length)}`]);
  if (doc.skipped) return [...rows, ["lost", `its place is padding, as ${doc.lost} is ${doc.skipped}`]];
  if (doc.compared) rows.push(["pair", doc.compared]);
  rows.push(["positions", `${range([doc.positions[0], doc.positions[1] + 1])} for the model`]);
  const weights = doc.weights.length === 1 && doc.weights[0] === 1 ? "" : `, weight ${doc.weights.join(", ")}`;
  rows.push(["learnt", doc.targets ? plural(doc.targets, "token") + weights : "nothing"]);
  const images = pictures(doc).map((span) => store.pictures[span[4]]);
  const patches = images.reduce((sum, image) => sum + image.rows * image.columns, 0);
  const soft = patches / store.merge ** 2;
  if (images.length) rows.push(["images", `${images.length}: ${plural(patches, "patch").replace("patchs", "patches")}, ${plural(soft, "soft token")}`]);
  rows.push(...clipFacts(doc));
  if (doc.boxes.length) rows.push(["boxes", doc.boxes.join("   ")]);
  return rows;
}

function lines(rows, columns, every) {
  let path = "";
  for (let r = every; r < rows; r += every) path += `M0 ${r}H${columns}`;
  for (let c = every; c < columns; c += every) path += `M${c} 0V${rows}`;
  return path;
}

// A picture at a whole multiple of its size, with its grids; what the pointer is on is told below it.
function figure(span) {
  const image = store.pictures[span[4]], { rows, columns } = image, merge = store.merge, side = store.patch;
  const width = columns * side, height = rows * side;
  const made = make("figure"), canvas = make("div", "canvas"), img = make("img");
  img.src = image.src;
  img.alt = `Image of ${width} by ${height} pixels, ${rows} by ${columns} patches`;
  const scale = Math.max(1, Math.min(10, Math.floor(288 / Math.max(width, height))));
  img.width = width * scale;
  img.height = height * scale;
  const svg = drawn("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [name, every] of [["patches", 1], ["soft", merge]]) {
    const path = lines(rows, columns, every);
    svg.append(drawn("path", { class: `${name}-under`, d: path }), drawn("path", { class: `${name}-over`, d: path }));
  }
  const cell = drawn("rect", { class: "cell", width: merge, height: merge, visibility: "hidden" });
  svg.append(cell);
  canvas.append(img, svg);
  const soft = span[2] - span[1];
  const told = `${width} × ${height} pixels · ${columns} × ${rows} patches, from ${number(image.patch)} · ` +
    `${plural(soft, "soft token")} at position${soft === 1 ? "" : "s"} ${range([span[1], span[2]])}` + (image.exact ? "" : " · shown as JPEG");
  const caption = make("figcaption", "", told);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
    const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
    const across = Math.floor(column / merge), down = Math.floor(row / merge);
    cell.setAttribute("x", across * merge);
    cell.setAttribute("y", down * merge);
    cell.setAttribute("visibility", "visible");
    caption.textContent = `patch at row ${row}, column ${column} · ` +
      `soft token at position ${number(span[1] + down * (columns / merge) + across)}`;
  });
  canvas.addEventListener("pointerleave", () => {
    cell.setAttribute("visibility", "hidden");
    caption.textContent = told;
  });
  made.append(canvas, caption);
  return made;
}

function shown(span) {
  const [kind, first, last, learnt, content] = span;
  if (kind === "picture") return figure(span);
  if (kind === "video") return film(span);
  if (kind === "audio") return sound(span);
  const text = kind.endsWith("features") ? plural(last - first, "ready-made feature") : content;
  const made = make("span", kind === "text" ? "text" : "chip", text);
  if (learnt) made.classList.add("learnt");
  made.title = `${kind === "text" ? plural(last - first, "token") + ", " : ""}position ${range([first, last])}` +
    (learnt ? ", learnt" : "");
  return made;
}

function open(index, moveFocus) {
  const doc = store.documents[index];
  if (!doc) return;
  if (opened >= 0) bars[opened].removeAttribute("aria-current");
  opened = index;
  bars[index].setAttribute("aria-current", "true");
  panel.style.setProperty("--h", store.hues[doc.source]);
  one("panel-name").textContent = doc.name;
  one("facts").replaceChildren(...facts(doc).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
  one("grids").hidden = !doc.spans.some(([kind]) => kind === "picture" || kind === "video");
  one("text").replaceChildren(...doc.spans.map(shown));
  one("previous").disabled = index === 0;
  one("next").disabled = index === store.documents.length - 1;
  panel.hidden = false;
  panel.querySelector(".inside").scrollTop = 0;
  if (narrow.matches) bars[index].scrollIntoView({ block: "nearest", inline: "nearest" });
  if (moveFocus) panel.focus({ preventScroll: true });
}

function close() {
  if (opened < 0) return;
  const bar = bars[opened];
  bar.removeAttribute("aria-current");
  panel.hidden = true;
  panel.querySelectorAll("audio").forEach((audio) => audio.pause());
  opened = -1;
  rove(bars.indexOf(bar), true);
}

// One stop of the Tab key for all documents; the arrows go from one to the next, and between rows.
function rove(index, moveFocus) {
  bars[current]?.setAttribute("tabindex", "-1");
  current = Math.max(0, Math.min(bars.length - 1, index));
  bars[current].setAttribute("tabindex", "0");
  if (moveFocus) bars[current].focus();
}

function beside(index, step) {
  const here = bars[index].getBoundingClientRect(), middle = (here.left + here.right) / 2;
  const rows = [...document.querySelectorAll(".row")].filter((row) => row.querySelector(".doc"));
  const row = rows[rows.indexOf(bars[index].closest(".row")) + step];
  if (!row) return index;
  const away = (bar) => {
    const box = bar.getBoundingClientRect();
    return Math.max(box.left - middle, middle - box.right, 0);
  };
  return bars.indexOf([...row.querySelectorAll(".doc")].reduce((a, b) => (away(b) < away(a) ? b : a)));
}

bars.forEach((bar, index) => {
  bar.addEventListener("click", (event) => {
    rove(index, false);
    open(index, event.detail === 0);  // 0: pressed by key
    tip.hidden = true;
  });
  bar.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "mouse") return;
    const doc = store.documents[index], text = plain(doc).replace(/\s+/g, " ").trim();
    const about = `${plural(doc.place[1] - doc.place[0], "token")}, ${number(doc.targets)} learnt`;
    tip.replaceChildren(make("b", "", `${doc.name} · ${about}`),
      make("span", "", doc.skipped ? `padding: ${doc.lost} is ${doc.skipped}` : text.length > 240 ? text.slice(0, 240) + "…" : text));
    tip.hidden = false;
    const box = bar.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const below = box.bottom + own.height + 18 < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(event.clientX - own.width / 2, innerWidth - own.width - 8))}px`;
    tip.style.top = `${below ? box.bottom + 14 : box.top - own.height - 8}px`;
  });
  bar.addEventListener("pointerleave", () => (tip.hidden = true));
});

document.querySelector(".rows").addEventListener("keydown", (event) => {
  const index = bars.indexOf(document.activeElement);
  if (index < 0) return;
  const next = { ArrowRight: () => index + 1, ArrowLeft: () => index - 1, ArrowDown: () => beside(index, 1),
    ArrowUp: () => beside(index, -1), Home: () => 0, End: () => bars.length - 1 }[event.key];
  if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  rove(next(), true);
});

function step(by) {
  open(opened + by, false);
  rove(opened, false);
  bars[opened].scrollIntoView({ block: "nearest", inline: "nearest" });
}
one("previous").addEventListener("click", () => step(-1));
one("next").addEventListener("click", () => step(1));
one("close").addEventListener("click", close);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target !== one("find")) close();
});
for (const kind of ["patches", "soft"]) {
  one(`show-${kind}`).addEventListener("change", (event) => panel.classList.toggle(`no-${kind}`, !event.target.checked));
}

one("zoom").addEventListener("input", (event) => {
  const middle = (scroller.scrollLeft + scroller.clientWidth / 2) / scroller.scrollWidth;
  scroller.style.setProperty("--zoom", 2 ** event.target.value);
  scroller.scrollLeft = middle * scroller.scrollWidth - scroller.clientWidth / 2;
});

let searched;
one("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  searched ??= store.documents.map((doc) => `${doc.name}\n${doc.origin}\n${plain(doc)}`.toLowerCase());
  let found = 0;
  bars.forEach((bar, index) => {
    const has = searched[index].includes(wanted);
    found += has;
    bar.classList.toggle("faint", !has);
  });
  one("found").textContent = wanted ? plural(found, "document") : "";
});

// Thumbnails where pictures stand, when their row comes near the screen.
const watch = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watch.unobserve(target);
    for (const mark of target.querySelectorAll("[data-picture]")) {
      mark.style.backgroundImage = `url("${store.pictures[mark.dataset.picture].src}")`;
    }
    target.querySelectorAll("[data-video], [data-audio]").forEach(thumbnail);
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".row").forEach((row) => watch.observe(row));

if (bars.length) {
  rove(0, false);
  if (!narrow.matches) open(0, false);
}
