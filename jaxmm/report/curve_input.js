// How charts of curves are read and zoomed: by pointer, touch, wheel and keys.

function listenTo(chart) {
  const { svg } = chart, touches = new Map();
  let start = null, pinch = null;
  const x = (event) => event.clientX - svg.getBoundingClientRect().left;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button || !chart.width) return;
    svg.setPointerCapture?.(event.pointerId);
    touches.set(event.pointerId, x(event));
    if (touches.size === 2) {
      pinch = { at: [...touches.values()].map(chart.stepAt), range: chart.range() };
      start = null;
    } else if (event.pointerType !== "touch") start = x(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!chart.width) return;
    if (touches.has(event.pointerId)) touches.set(event.pointerId, x(event));
    if (pinch && touches.size === 2) return pinchTo(chart, pinch, [...touches.values()]);
    if (start !== null && Math.abs(x(event) - start) > 4) {
      const [a, b] = [start, x(event)].sort((p, q) => p - q);
      chart.chosen.setAttribute("x", a);
      chart.chosen.setAttribute("width", b - a);
      chart.chosen.setAttribute("visibility", "visible");
    }
    chart.tell(chart.snapped(chart.stepAt(x(event))), event.clientX);
  });
  const end = (event) => {
    touches.delete(event.pointerId);
    if (touches.size < 2) pinch = null;
    chart.chosen?.setAttribute("visibility", "hidden");
    if (start !== null && event.type === "pointerup" && Math.abs(x(event) - start) > 8) {
      const [a, b] = [start, x(event)].map(chart.stepAt).sort((p, q) => p - q);
      zoom(a, b);
    }
    start = null;
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  svg.addEventListener("pointerleave", () => chart.leave());
  svg.addEventListener("blur", () => chart.leave());
  svg.addEventListener("dblclick", () => zoom(null, null));
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    scaleAbout(chart, Math.exp(event.deltaY / 300), chart.stepAt(x(event)));
  }, { passive: false });
  svg.addEventListener("keydown", (event) => keyOf(chart, event));
}

function pinchTo(chart, { at, range }, now) {
  const [a, b] = now.map((x) => (x - LEFT) / (chart.width - LEFT - RIGHT));
  if (Math.abs(b - a) < 0.02) return;
  const wide = (at[1] - at[0]) / (b - a), from = at[0] - a * wide;
  if (wide > 0 && wide <= range[1] - range[0] + view.last - view.first) zoom(from, from + wide);
}

function scaleAbout(chart, part, about) {
  const [from, to] = chart.range();
  zoom(about - (about - from) * part, about + (to - about) * part);
}

function keyOf(chart, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = () => [...new Set(chart.shown.flatMap((curve) => curve.x))].sort((a, b) => a - b)
    .filter((step) => step >= chart.range()[0] && step <= chart.range()[1]);
  const moved = (by) => {
    const all = steps();
    if (!all.length) return;
    const now = chart.cursor === null ? (by > 0 ? -1 : all.length) : place(all, chart.cursor);
    chart.tell(all[Math.max(0, Math.min(all.length - 1, now + by))]);
  };
  const middle = () => chart.cursor ?? (chart.range()[0] + chart.range()[1]) / 2;
  const doing = {
    ArrowRight: () => moved(event.shiftKey ? 10 : 1), ArrowLeft: () => moved(event.shiftKey ? -10 : -1),
    Home: () => chart.tell(steps()[0]), End: () => chart.tell(steps().at(-1)),
    "+": () => scaleAbout(chart, 0.6, middle()), "=": () => scaleAbout(chart, 0.6, middle()), "-": () => scaleAbout(chart, 1 / 0.6, middle()),
    "0": () => zoom(null, null), Escape: () => chart.leave(),
  }[event.key];
  if (!doing) return;
  event.preventDefault();
  doing();
}

// Shows these steps in all charts; null shows all.
let isDue = false;
function zoom(from, to) {
  if (from !== null) {
    from = Math.max(view.first, from);
    to = Math.min(view.last, to);
    if (to - from < 2) return;
    if (from <= view.first && to >= view.last) [from, to] = [null, null];
  }
  Object.assign(view, { from, to });
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const reset = one("reset");
    if (reset) {
      reset.disabled = view.from === null;
      one("zoomed").textContent = view.from === null ? "" : `steps ${number(Math.ceil(view.from))} to ${number(Math.floor(view.to))}`;
    }
    for (const chart of view.charts) chart.draw();
  });
}

function curveTools() {
  const tools = one("curve-tools");
  if (!tools) return;
  const smooth = make("label"), box = make("input"), reset = make("button", "small", "Show all steps"), told = make("output");
  box.type = "checkbox";
  box.id = "smooth";
  box.addEventListener("change", () => {
    view.smooth = box.checked;
    for (const chart of view.charts) chart.draw();
  });
  smooth.append(box, "smooth");
  reset.type = "button";
  reset.id = "reset";
  reset.disabled = true;
  reset.addEventListener("click", () => zoom(null, null));
  told.id = "zoomed";
  tools.prepend(smooth, reset, told);
}
