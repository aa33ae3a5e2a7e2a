// Where the tokens of an answer looked: its tokens as chips, shares of attention by what stands there, and the media as
// the model sees them, lit where a token looked.

const shownBlank = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "·";

// Whether there is anything to draw: a model that has diverged gives null.
const isFiniteLook = ({ maps, mass }) => ![...maps.scale, ...Object.values(mass).flat()].includes(null);

class Looks {
  // look: a sample with its maps. answer: the whole text. written: its tokens, of which the sample may have the first.
  constructor(look, answer, written) {
    this.look = look;
    this.map = 0;
    this.pinned = this.hovered = -1;
    this.maps = new Maps(look);
    this.written = written;
    this.tokens = this.chips(answer);
    this.panel = this.makePanel();
    this.draw();
  }

  isCut() {
    return this.written > this.look.tokens.length;
  }

  // The token that is chosen; -1 is the mean over all.
  at() {
    return this.hovered >= 0 ? this.hovered : this.pinned;
  }

  chips(answer) {
    const box = make("p", "answer tokens"), { tokens, mass } = this.look;
    this.chipsOf = tokens.map((text, token) => {
      const chip = make("span", "token", text), seen = MEDIA.reduce((sum, name) => sum + (mass[name]?.[token] ?? 0), 0);
      if (!text.trim()) {
        chip.classList.add("blank");
        chip.dataset.shown = shownBlank(text);
      }
      chip.style.setProperty("--seen", seen.toFixed(3));
      chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.hover(token));
      chip.addEventListener("click", () => this.pin(this.pinned === token ? -1 : token));
      return chip;
    });
    box.append(...this.chipsOf);
    const begun = tokens.join("").trimStart(), whole = answer.trimStart();
    if (this.isCut() && whole.startsWith(begun)) {
      const rest = make("span", "unseen", whole.slice(begun.length));
      rest.title = `Where it looked is measured of the first ${plural(tokens.length, "token")}`;
      box.append(rest);
    }
    if (tokens.length) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Answer, token by token: the arrow keys move, Escape is the whole answer");
      box.addEventListener("keydown", (event) => this.key(event));
      box.addEventListener("pointerleave", () => this.hover(-1));
    }
    return box;
  }

  key(event) {
    const last = this.look.tokens.length - 1;
    const next = {
      ArrowRight: () => Math.min(last, this.pinned + 1), ArrowLeft: () => (this.pinned < 0 ? last : Math.max(0, this.pinned - 1)),
      Home: () => 0, End: () => last, Escape: () => -1,
    }[event.key];
    if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.pin(next());
  }

  hover(token) {
    this.hovered = token;
    this.draw();
  }

  pin(token) {
    this.pinned = token;
    this.draw();
  }

  makePanel() {
    const panel = make("div", "looks"), tools = make("div", "tools");
    this.told = make("p", "told");
    this.told.setAttribute("aria-live", "polite");
    this.bar = make("div", "stack");
    this.legend = make("ul", "legend");
    this.figures = this.look.media.map((medium, n) => this.figure(medium, n));
    tools.append(this.told);
    if (this.look.soft && this.look.tokens.length) tools.append(this.chooser());
    panel.append(tools, this.bar, this.legend);
    if (this.figures.length) {
      const seen = make("div", "seen");
      seen.append(...this.figures.map(({ box }) => box));
      panel.append(seen);
    }
    return panel;
  }

  chooser() {
    const names = ["mean of all heads", ...this.look.chosen.map(headName)];
    const [label, select] = choice("map", names.map((name, map) => [map, name]), (map) => {
      this.map = Number(map);
      this.draw();
    });
    select.title = "Layers and heads count from 0";
    return label;
  }

  figure(medium, n) {
    const box = make("figure"), area = make("div", "canvas"), img = make("img"), canvas = make("canvas");
    const cells = new Cells(medium), name = `${medium.kind === "audio" ? "recording" : medium.kind} ${n}`;
    const told = this.look.media.length > 1 ? `${name}, as the model gets it` : "as the model gets it";
    const what = {
      image: () => `${medium.width} × ${medium.height} pixels`,
      video: () => `${plural(medium.frames, "frame")} of ${medium.seconds.toFixed(1)} s`,
      audio: () => `${medium.seconds.toFixed(1)} s`,
    }[medium.kind]();
    img.src = medium.src;
    img.alt = `${medium.kind}, as the model gets it: ${what}`;
    const wanted = medium.kind === "image" ? medium.width * Math.max(1, Math.floor(320 / medium.width)) : medium.kind === "video" ? 520 : 560;
    area.style.width = `${wanted}px`;
    if (medium.kind === "audio") area.classList.add("sound");
    area.append(img, canvas);
    box.append(area, make("figcaption", "", `${told}: ${what}, ${plural(cells.count, "soft token")}`));
    return { box, medium, cells, canvas, name };
  }

  draw() {
    const { look } = this, at = this.at(), weights = this.maps.weights(this.map, at), largest = Math.max(...weights, 0);
    this.chipsOf.forEach((chip, token) => {
      chip.classList.toggle("on", token === at);
      chip.classList.toggle("pinned", token === this.pinned);
    });
    const parts = shares(look.mass, at);
    drawShares(this.bar, parts, "Attention");
    this.legend.replaceChildren(...parts.map(([name, value]) => legendItem(name, said(name, value))));
    this.told.textContent = this.say(at, weights, largest);
    for (const figure of this.figures) light(figure, weights, largest);
  }

  say(at, weights, largest) {
    const { tokens, soft } = this.look;
    if (!tokens.length) return "The answer has no tokens.";
    const whole = tokens.length === 1 ? "1 token" : `All ${plural(tokens.length, "token")}, on average`;
    const all = this.isCut() ? `The first ${tokens.length} of ${plural(this.written, "token")}, on average` : whole;
    const of = at >= 0 ? `Token ${at + 1} of ${this.written}, “${tokens[at].trim() || shownBlank(tokens[at])}”` : all;
    return soft && largest ? `${of}: most onto ${this.where(weights.indexOf(largest))} (${share(largest)})` : of;
  }

  // Where a soft token stands in its medium, in words.
  where(place) {
    const { medium, cells, name } = this.figures.findLast((figure) => figure.medium.first <= place), own = place - medium.first;
    const inside = medium.kind === "audio" ? `${((medium.seconds * own) / cells.count).toFixed(1)} s` : cells.name(own);
    return this.figures.length > 1 ? `${inside} of ${name}` : inside;
  }
}

// Lays shade over a medium, lighter where there is more attention, and frames the cell that has the most.
function light({ medium, cells, canvas }, weights, largest) {
  const pen = canvas.getContext("2d"), back = getComputedStyle(document.body).getPropertyValue("--card");
  const isSound = medium.kind === "audio", width = isSound ? 560 : medium.width, height = isSound ? 96 : medium.height;
  const scale = Math.max(1, Math.round(640 / width));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const wide = canvas.width / cells.width, tall = canvas.height / cells.height;
  let most = null;
  for (let n = 0; n < cells.count; n += 1) {
    const [x, y] = cells.at(n), value = weights[medium.first + n], part = largest ? Math.sqrt(value / largest) : 1;
    const cell = [Math.floor(x * wide), Math.floor(y * tall), Math.ceil(wide), Math.ceil(tall)];
    pen.clearRect(...cell);
    pen.fillStyle = `rgb(12 14 34 / ${(0.78 * (1 - part)).toFixed(3)})`;
    pen.fillRect(...cell);
    pen.fillStyle = `rgb(255 176 32 / ${largest ? (0.36 * part * part).toFixed(3) : 0})`;
    pen.fillRect(...cell);
    if (isSound) {  // a dark spectrogram shows little of a shade: a bar tells the rest
      pen.fillStyle = "rgb(255 255 255 / 0.5)";
      pen.fillRect(cell[0] + 1, canvas.height, cell[2] - 2, largest ? (-0.45 * canvas.height * value) / largest : 0);
    }
    if (largest && value === largest) most = cell;
  }
  if (medium.kind === "video") {  // what the sheet has behind the last frame, and lines between frames
    const { frames, across, down } = cells, frameWide = wide * cells.columns, frameTall = tall * cells.rows;
    pen.fillStyle = back;
    pen.fillRect((frames % across) * frameWide, (down - 1) * frameTall, frames % across ? canvas.width : 0, frameTall);
    for (let n = 1; n < across; n += 1) pen.fillRect(n * frameWide - 2, 0, 4, canvas.height);
    for (let n = 1; n < down; n += 1) pen.fillRect(0, n * frameTall - 2, canvas.width, 4);
  }
  if (!most) return;
  for (const [colour, thick] of [["#000c", 5], ["#ffd27a", 2.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = (thick * canvas.width) / 520;
    pen.strokeRect(...most);
  }
}
