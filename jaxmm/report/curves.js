// Curves over the steps: read by pointer or arrows, zoomed all at once, their lines hidden one by one.

const HEIGHT = 210, LEFT = 52, RIGHT = 12, TOP = 10, FOOT = 24;
const DASHES = ["", "6 4", "2 3", "9 3 2 3", "1 5", "12 4"];
const view = { from: null, to: null, smooth: false, charts: [], first: Infinity, last: -Infinity };

class CurveChart {
  constructor(spec) {
    this.spec = spec;
    this.isLog = spec.log;
    this.hidden = new Set();
    this.cursor = null;  // the step that is read
    this.figure = make("figure", "chart curve");
    this.figure.dataset.chart = spec.key;
    const caption = make("figcaption"), title = make("span", "", spec.title);
    title.id = `chart-${spec.key}`;
    caption.append(title, make("small", "", spec.unit), ...(spec.form === "percent" ? [] : [this.logButton()]));
    this.svg = drawn("svg", { class: "plot", tabindex: 0, role: "img", "aria-labelledby": title.id, height: HEIGHT });
    this.read = make("output", "hidden");
    const [only, ...others] = spec.curves, isPlain = !others.length && !only.dots && !many;  // its title says it all
    this.figure.append(caption, this.svg, this.read, ...(isPlain ? [] : [curveLegend(this)]), curveNumbers(this));
    listenTo(this);
    new ResizeObserver(() => this.figure.clientWidth !== this.width && this.draw()).observe(this.figure);
  }

  get shown() {
    return this.spec.curves.filter((curve) => !this.hidden.has(`run ${curve.run}`) && !this.hidden.has(curve.name));
  }

  logButton() {
    const button = make("button", "small", "log");
    button.type = "button";
    button.title = "Logarithmic axis";
    button.setAttribute("aria-label", `Logarithmic axis of ${this.spec.title}`);
    button.setAttribute("aria-pressed", this.isLog);
    button.addEventListener("click", () => {
      this.isLog = !this.isLog;
      button.setAttribute("aria-pressed", this.isLog);
      this.draw();
    });
    return button;
  }

  range() {
    return [view.from ?? view.first, view.to ?? view.last];
  }

  // The points of a curve within the steps that are shown, and one beyond each end.
  within(curve) {
    const [from, to] = this.range();
    const first = Math.max(0, place(curve.x, from) - 1), last = Math.min(curve.x.length, place(curve.x, to + 1) + 1);
    const reach = view.smooth && !curve.dots ? Math.max(2, Math.round((last - first) / 40)) : 0;
    const y = curve.y.slice(first, last);
    return { x: curve.x.slice(first, last), y, smooth: reach && y.length > 8 ? smoothed(y, reach) : null };
  }

  draw() {
    const width = this.figure.clientWidth;
    if (!width) return;
    this.width = width;
    const [from, to] = this.range(), shown = this.shown.map((curve) => [curve, this.within(curve)]);
    const fits = (value) => !this.isLog || value > 0;
    let low = Infinity, high = -Infinity;
    for (const [, { x, y }] of shown) {
      y.forEach((value, n) => {
        if (x[n] < from || x[n] > to || !fits(value)) return;
        low = Math.min(low, value);
        high = Math.max(high, value);
      });
    }
    if (low > high) [low, high] = this.isLog ? [0.1, 1] : [0, 1];
    if (this.spec.from0 && !this.isLog) [low, high] = [Math.min(0, low), Math.max(0, high)];
    if (this.isLog) [low, high] = high / low < 1.02 ? [low / 1.1, high * 1.1] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
    else if (high - low < Math.abs(high) * 1e-6 || high === low) [low, high] = [Math.min(low, 0), high > 0 ? high : 1];
    else [low, high] = [low === 0 ? 0 : low - 0.04 * (high - low), high === 0 ? 0 : high + 0.06 * (high - low)];
    const up = scaled(low, high, this.isLog), tall = HEIGHT - TOP - FOOT, wide = width - LEFT - RIGHT;
    this.atX = (step) => LEFT + ((step - from) / (to - from || 1)) * wide;
    this.atY = (value) => TOP + (1 - up(value)) * tall;
    this.stepAt = (x) => from + ((x - LEFT) / wide) * (to - from || 1);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.axes(low, high, from, to), ...this.lines(shown, fits, wide), ...this.readers());
    fillNumbers(this);
    this.point(this.cursor);
  }

  *axes(low, high, from, to) {
    const unit = this.spec.form === "bytes" ? 2 ** 30 : 1;
    const ticks = (this.isLog ? logTicks : evenTicks)(low / unit, high / unit, 4).map((tick) => tick * unit);
    for (const tick of ticks) {
      const y = this.atY(tick);
      yield drawn("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y });
      const text = drawn("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" });
      text.textContent = label(tick, this.spec.form);
      yield text;
    }
    const floor = HEIGHT - FOOT;
    yield drawn("line", { x1: LEFT, x2: this.width - RIGHT, y1: floor, y2: floor });
    let free = -Infinity;
    for (const tick of evenTicks(from, to, Math.max(2, Math.floor(this.width / 110)), true)) {
      const said = label(tick, "plain"), half = 3.4 * said.length;
      const x = Math.min(this.atX(tick), this.width - half);
      if (x - half < free) continue;
      free = x + half + 8;
      const text = drawn("text", { x, y: HEIGHT - 7, "text-anchor": "middle" });
      text.textContent = said;
      yield text;
    }
  }

  *lines(shown, fits, wide) {
    const id = `clip-${this.spec.key}`, clip = drawn("clipPath", { id });
    clip.append(drawn("rect", { x: LEFT - 1, y: TOP - 5, width: wide + 6, height: HEIGHT - FOOT - TOP + 7 }));
    yield clip;
    const group = drawn("g", { "clip-path": `url(#${id})` });
    for (const [curve, { x, y, smooth }] of shown) {
      const path = (values) => {
        let d = "", isUp = true;
        values.forEach((value, n) => {
          if (!fits(value)) isUp = true;
          else {
            d += `${isUp ? "M" : "L"}${this.atX(x[n]).toFixed(1)} ${this.atY(value).toFixed(1)}`;
            isUp = false;
          }
        });
        return d;
      };
      const line = (values, className) => {
        const made = drawn("path", { class: className, d: path(values), "stroke-dasharray": dashes(curve) });
        made.style.stroke = colour(curve);
        return made;
      };
      group.append(line(y, smooth ? "drawn faint" : "drawn"));
      if (smooth) group.append(line(smooth, "drawn"));
      if (curve.dots || y.length === 1) {
        y.forEach((value, n) => {
          if (!fits(value)) return;
          const dot = drawn("circle", { class: "dot", cx: this.atX(x[n]).toFixed(1), cy: this.atY(value).toFixed(1), r: 3.2 });
          dot.style.fill = colour(curve);
          group.append(dot);
        });
      }
    }
    yield group;
  }

  *readers() {
    this.hair = drawn("line", { class: "hair", y1: TOP, y2: HEIGHT - FOOT, visibility: "hidden" });
    this.marks = drawn("g", {});
    this.chosen = drawn("rect", { class: "chosen", y: TOP, height: HEIGHT - TOP - FOOT, visibility: "hidden" });
    yield this.chosen;
    yield this.hair;
    yield this.marks;
  }

  // The values at a step: of each curve the point that is nearest to it.
  valuesAt(step) {
    return this.shown.map((curve) => {
      const n = nearest(curve.x, step);
      return { curve, step: curve.x[n], value: curve.y[n] };
    });
  }

  // The step of the point that is nearest, of any curve.
  snapped(step) {
    return this.valuesAt(step).reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a), { step: Infinity }).step;
  }

  // Draws the hair at a step, in the chart that is read and in all others; null takes it away.
  point(step, isRead = false) {
    if (!this.hair) return;
    const x = step === null ? NaN : this.atX(step);
    const isIn = x >= LEFT - 1 && x <= this.width - RIGHT + 1;
    this.hair.setAttribute("visibility", isIn ? "visible" : "hidden");
    this.marks.replaceChildren();
    if (!isIn) return;
    this.hair.setAttribute("x1", x);
    this.hair.setAttribute("x2", x);
    if (!isRead) return;
    for (const { curve, step: own, value } of this.valuesAt(step)) {
      if (this.isLog && value <= 0) continue;
      const dot = drawn("circle", { class: "mark", cx: this.atX(own), cy: this.atY(value), r: 4 });
      dot.style.fill = colour(curve);
      this.marks.append(dot);
    }
  }

  // Reads the values at a step: a note beside the pointer, and a sentence for those who do not see it.
  tell(step, clientX) {
    if (!Number.isFinite(step) || !this.width) return;
    this.cursor = step;
    for (const chart of view.charts) chart.point(step, chart === this);
    const values = this.valuesAt(step);
    const head = make("b", "", `step ${number(step)}`);
    const rows = values.map(({ curve, step: own, value }) => {
      const row = make("div", "value");
      row.append(piece(curve), make("span", "", fullName(curve)), make("b", "", written(value, this.spec.form)));
      if (own !== step) row.append(make("small", "", `at ${number(own)}`));
      return row;
    });
    tip.replaceChildren(head, ...rows);
    this.read.textContent = `step ${number(step)}: ` +
      values.map(({ curve, step: own, value }) =>
        `${fullName(curve)} ${written(value, this.spec.form)}${own === step ? "" : ` at step ${number(own)}`}`).join(", ");
    tip.hidden = false;
    const box = this.svg.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const x = clientX ?? box.left + this.atX(step), isRight = x + 18 + own.width < innerWidth;
    tip.style.left = `${Math.max(8, isRight ? x + 18 : x - own.width - 18)}px`;
    tip.style.top = `${Math.max(8, Math.min(box.top + TOP, innerHeight - own.height - 8))}px`;
  }

  leave() {
    tip.hidden = true;
    this.cursor = null;
    for (const chart of view.charts) chart.point(null);
  }
}

function drawCurves() {
  for (const of of Object.values(store.charts)) {
    for (const { curves } of of) {
      for (const { x } of curves) {
        view.first = Math.min(view.first, x[0]);
        view.last = Math.max(view.last, x.at(-1));
      }
    }
  }
  if (view.first > 0 && view.first <= 0.15 * view.last) view.first = 0;
  if (view.first === view.last) view.first -= 1;
  document.querySelectorAll("[data-charts]").forEach((box) => {
    for (const spec of store.charts[box.dataset.charts] ?? []) {
      const chart = new CurveChart(spec);
      view.charts.push(chart);
      box.append(chart.figure);
    }
  });
  for (const chart of view.charts) chart.draw();  // at once: the first pointer may be there
  curveTools();
}
