// The held-out samples of all runs: which are shown, of which head, and what their colours say.

class Samples {
  constructor(box) {
    this.box = box;
    this.sets = store.runs.flatMap((run) => run.samples.map((set) => ({ run, set })));
    this.tools = make("div", "tools");
    this.list = make("ol", "cards");
    box.append(this.tools, this.legend(), this.list);
    this.n = 0;
    this.fillTools();
    this.fill();
    chosenHead.listeners.push(() => {
      if (this.heads) this.heads.value = chosenHead.at ? chosenHead.at.join() : "";
      this.cards.forEach((card) => card.draw());
    });
  }

  fillTools() {
    const tools = [];
    if (this.sets.length > 1) {
      const named = ({ run, set }) => [...(many ? [run.name] : []), set.source].join(" · ");
      tools.push(choice(many ? "run and source" : "source", this.sets.map((one, n) => [n, named(one)]), (value) => {
        this.n = Number(value);
        this.fillHeads();
        this.fill();
      })[0]);
    }
    const [label, select] = choice("attention of", [], (value) => chooseHead(value ? value.split(",").map(Number) : null));
    this.heads = select;
    select.id = "head";
    this.fillHeads();
    const opacity = make("label"), slider = make("input"), wrong = make("label"), box = make("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.05, value: 0.85, id: "opacity" });
    slider.addEventListener("input", () => this.list.style.setProperty("--over", slider.value));
    opacity.append("overlay", slider);
    box.type = "checkbox";
    box.id = "only-wrong";
    box.addEventListener("change", () => this.cards.forEach((card) => (card.item.hidden = box.checked && card.isRight)));
    wrong.append(box, "wrong answers alone");
    this.tools.append(...tools, label, opacity, wrong);
  }

  fillHeads() {
    const heads = new Map();
    for (const { chosen } of this.sets[this.n].set.samples) for (const at of chosen) heads.set(at.join(), at);
    const sorted = [...heads.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    this.heads.replaceChildren(...[["", "all heads, their mean"], ...sorted.map((at) => [at.join(), headName(at)])].map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    this.heads.value = chosenHead.at ? chosenHead.at.join() : "";
  }

  // What colours, frames and bars say, of what these samples have.
  legend() {
    const samples = this.sets.flatMap(({ set }) => set.samples), box = make("div", "scales");
    const isSound = samples.flatMap(({ media }) => media.map(({ kind }) => kind === "audio"));
    for (const [ramp, there, where] of [["heat", isSound.includes(false), "picture"], ["ice", isSound.includes(true), "spectrogram"]]) {
      if (!there) continue;
      const line = make("p", "scale");
      line.append(`Colour on a ${where}: no attention`, make("i", ramp), "the most in its sample; the middle is a quarter of that.");
      box.append(line);
    }
    box.append(make("p", "scale", "White frame: where most of a picture’s attention goes."));
    const bar = make("p", "scale", "Bar: where all attention goes,");
    for (const name of Object.keys(SAID).filter((name) => samples.some(({ mass }) => mass[name]))) {
      const item = make("span");
      item.append(make("i", `key c-${name}`), SAID[name]);
      bar.append(item);
    }
    box.append(bar);
    return box;
  }

  fill() {
    const { set } = this.sets[this.n];
    this.cards = set.samples.map((sample, n) => new Card(sample, n + 1));
    this.list.replaceChildren(...this.cards.map((card) => card.item));
    if (one("only-wrong")?.checked) this.cards.forEach((card) => (card.item.hidden = card.isRight));
    this.cards.forEach((card) => card.draw());
  }
}
