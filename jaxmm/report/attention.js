// The attention monitor: by layer where attention goes, and a field for each head, of one monitored step.

const chosenHead = { at: null, listeners: [] };  // [layer, head], or null for the mean of all

function chooseHead(at) {
  chosenHead.at = at;
  for (const listener of chosenHead.listeners) listener();
}

class Monitor {
  constructor(box) {
    this.runs = store.runs.filter((run) => run.attention);
    this.run = this.runs[0];
    this.source = "";
    this.what = "";
    this.box = box;
    this.tools = make("div", "tools");
    this.parts = make("div", "monitor");
    this.parts.append(this.layersBox = make("div", "part"), this.headsBox = make("div", "part"));
    const over = document.querySelector('[data-charts="attention"]');
    if (over.childElementCount) this.parts.append(over);
    box.append(this.tools, this.parts);
    this.fillTools();
    chosenHead.listeners.push(() => this.mark());
    this.draw();
  }

  get all() {
    return this.run.attention;
  }

  get step() {
    return this.all.steps[this.n];
  }

  fillTools() {
    this.n = this.all.steps.length - 1;
    const tools = [];
    if (this.runs.length > 1) {
      const [label, select] = choice("run", this.runs.map((run, n) => [n, run.name]), (value) => {
        this.run = this.runs[value];
        this.fillTools();
        this.draw();
      });
      select.value = this.runs.indexOf(this.run);
      tools.push(label);
    }
    if (this.all.steps.length > 1) {
      const label = make("label"), slider = make("input"), told = make("output", "wide-number");
      Object.assign(slider, { type: "range", min: 0, max: this.n, step: 1, value: this.n });
      slider.id = "monitored";
      const tell = () => {
        told.textContent = number(this.step.step);
        slider.setAttribute("aria-valuetext", `step ${number(this.step.step)}`);
      };
      slider.addEventListener("input", () => {
        this.n = Number(slider.value);
        tell();
        this.draw();
      });
      tell();
      label.append("step", slider, told);
      tools.push(label);
    }
    const keys = (of) => [...new Set(this.all.steps.flatMap((step) => Object.keys(step[of])))], sources = keys("sources");
    if (!sources.includes(this.source)) this.source = "";
    if (sources.length > 1) {
      const [label, select] = choice("source", [["", "all"], ...sources.map((name) => [name, name])], (value) => {
        this.source = value;
        this.draw();
      });
      select.value = this.source;
      tools.push(label);
    }
    this.tools.replaceChildren(...tools);
    const media = this.all.classes.filter((name) => MEDIA.includes(name));
    this.options = [
      ...(media.length > 1 ? [["media", "onto all media"]] : []),
      ...this.all.classes.map((name) => [name, `onto ${SAID[name]}`]),
      ...keys("media").map((name) => [`with ${name}`, `onto ${SAID[name] ?? name}, where there are some before`]),
      ...(this.all.steps.some((step) => step.entropy) ? [["entropy", "entropy, in nats"]] : []),
    ];
    if (!this.options.some(([value]) => value === this.what)) this.what = this.options[0][0];
  }

  draw() {
    this.drawLayers();
    this.drawHeads();
  }

  // Stacked bars: a layer each, of all heads together.
  drawLayers() {
    const of = this.source ? this.step.sources[this.source] : this.step;
    const title = make("h3", "", "By layer"), list = make("ol", "layers");
    const told = this.source ? this.source : "all sources";
    title.append(make("small", "", `${told}, mean over heads${of?.queries ? `, ${number(of.queries)} targets` : ""}`));
    for (let layer = 0; layer < this.all.layers; layer += 1) {
      const item = make("li"), bar = make("div", "stack"), parts = [];
      for (const name of this.all.classes) {
        const row = of?.mass[name]?.[layer];
        const value = row === undefined ? 0 : typeof row === "number" ? row : average(row);
        if (value <= 0) continue;
        const segment = make("i", `c-${name}`, value > 0.08 ? share(value) : "");
        segment.style.width = `${100 * value}%`;
        segment.title = `layer ${layer}: ${said(name, value)}`;
        parts.push(said(name, value));
        bar.append(segment);
      }
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", `Layer ${layer}: ${parts.join(", ")}`);
      item.append(make("span", "tick", `${layer}`), bar);
      list.append(item);
    }
    const legend = make("ul", "legend");
    for (const name of this.all.classes) {
      legend.append(legendItem(name, SAID[name]));
    }
    this.layersBox.replaceChildren(title, list, legend);
  }

  table() {
    const { step } = this;
    if (this.what === "entropy") return step.entropy;
    if (this.what.startsWith("with ")) return step.media[this.what.slice(5)]?.mass;
    if (this.what !== "media") return step.mass[this.what];
    const tables = MEDIA.flatMap((name) => (step.mass[name] ? [step.mass[name]] : []));
    return tables[0]?.map((row, layer) => row.map((_, head) => tables.reduce((sum, one) => sum + one[layer][head], 0)));
  }

  // A field for each head, the darker the more; arrows go from one to the next, Enter chooses it for the samples.
  drawHeads() {
    const table = this.table(), isEntropy = this.what === "entropy", { layers, heads } = this.all;
    const title = make("h3", "", heads > 1 ? "By head" : "By layer, mean over heads");
    const [label, select] = choice("", this.options, (value) => {
      this.what = value;
      this.drawHeads();
      this.headsBox.querySelector("select").focus();
    });
    select.value = this.what;
    select.setAttribute("aria-label", "What the fields show");
    title.append(label);
    if (!table) {
      this.headsBox.replaceChildren(title, make("p", "note", "Not measured at this step."));
      return;
    }
    const most = Math.max(...table.flat(), 1e-9), grid = make("div", "heads"), hasRoom = heads <= 8;
    grid.style.setProperty("--columns", heads);
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", `Heads, ${this.options.find(([value]) => value === this.what)[1]}`);
    const corner = make("span", "tick", "");
    grid.append(corner);
    for (let head = 0; head < heads; head += 1) grid.append(make("span", "tick", heads > 1 && (hasRoom || head % 4 === 0) ? `${head}` : ""));
    this.fields = [];
    for (let layer = 0; layer < layers; layer += 1) {
      grid.append(make("span", "tick", `${layer}`));
      for (let head = 0; head < heads; head += 1) {
        const value = table[layer][head], said = isEntropy ? fixed(value, 2) : share(value);
        const field = make("button", "field", hasRoom ? said : ""), part = Math.min(1, value / most);
        field.type = "button";
        field.style.setProperty("--part", `${(100 * part).toFixed(1)}%`);
        field.title = `${heads > 1 ? headName([layer, head]) : `layer ${layer}`}: ${said}`;
        field.setAttribute("aria-label", field.title);
        field.tabIndex = -1;
        field.addEventListener("click", () => {
          const isChosen = chosenHead.at && chosenHead.at[0] === layer && chosenHead.at[1] === head;
          if (heads > 1) chooseHead(isChosen ? null : [layer, head]);
          this.rove(layer * heads + head, false);
        });
        this.fields.push(field);
        grid.append(field);
      }
    }
    grid.addEventListener("keydown", (event) => this.key(event));
    const scale = make("p", "scale");
    scale.append("0", make("i"), isEntropy ? `${most.toFixed(2)} nats` : share(most), make("small", "", "Down: layers. Across: heads."));
    this.told = make("p", "told");
    this.headsBox.replaceChildren(title, grid, scale, this.told);
    this.rove(Math.min(this.current ?? 0, this.fields.length - 1), false);
    this.mark();
  }

  mark() {
    if (!this.fields) return;
    const { heads } = this.all, { at } = chosenHead;
    this.fields.forEach((field, n) => {
      const isChosen = at && at[0] === Math.floor(n / heads) && at[1] === n % heads;
      field.setAttribute("aria-pressed", Boolean(isChosen));
    });
    if (heads === 1) this.told.textContent = "";
    else if (at) {
      const clear = make("button", "small", "Show the mean again");
      clear.type = "button";
      clear.addEventListener("click", () => chooseHead(null));
      this.told.replaceChildren(`The samples show ${headName(at)}. `, clear);
    } else this.told.textContent = one("answers") ? "Choose a head to see in the samples where it looks." : "";
  }

  rove(n, moveFocus) {
    this.fields[this.current]?.setAttribute("tabindex", "-1");
    this.current = Math.max(0, Math.min(this.fields.length - 1, n));
    this.fields[this.current].setAttribute("tabindex", "0");
    if (moveFocus) this.fields[this.current].focus();
  }

  key(event) {
    const n = this.fields.indexOf(document.activeElement), { heads } = this.all;
    const next = { ArrowRight: n + 1, ArrowLeft: n - 1, ArrowDown: n + heads, ArrowUp: n - heads, Home: 0, End: this.fields.length - 1 }[event.key];
    if (n < 0 || next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (next >= 0 && next < this.fields.length) this.rove(next, true);
  }
}
