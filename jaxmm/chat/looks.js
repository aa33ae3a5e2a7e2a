// Where the tokens of an answer looked: its tokens as chips, shares of attention by what stands there, and the media as
// the model sees them, lit where a token looked. What it draws is what jaxmm/monitor/heatmaps.py keeps of a sample.

const SAID = {
  image: "images", video: "videos", audio: "recordings", separators: "special tokens", first: "the first position",
  turn: "text of the turn", earlier: "earlier text",
};
const SEEN = ["image", "video", "audio"];
const headName = ([layer, head]) => `layer ${layer}, head ${head}`;
const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}%`;
const shownBlank = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "·";
const average = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);

// Whether there is anything to draw: a model that has diverged gives null.
const isFiniteLook = ({ maps, mass }) => ![...maps.scale, ...Object.values(mass).flat()].includes(null);

class Looks {
  // look: a sample with its maps. answer: the whole text. most: tokens whose maps are made.
  constructor(look, answer, most) {
    this.look = look;
    this.map = 0;
    this.pinned = this.hovered = -1;
    this.bytes = Uint8Array.from(atob(look.maps.data), (letter) => letter.charCodeAt(0));
    this.tokens = this.chips(answer, most);
    this.panel = this.makePanel();
    this.draw();
  }

  // Attention of a token onto each soft token in the chosen map.
  weights(token) {
    const { soft, tokens, maps } = this.look, start = (this.map * tokens.length + token) * soft;
    return Array.from(this.bytes.subarray(start, start + soft), (byte) => maps.scale[this.map] * (byte / 255) ** 2);
  }

  // The same of the token that is chosen, or the mean over all.
  chosen() {
    const { soft, tokens } = this.look, at = this.at();
    if (at >= 0) return this.weights(at);
    const all = tokens.map((_, token) => this.weights(token));
    return Array.from({ length: soft }, (_, place) => average(all.map((weights) => weights[place])));
  }

  at() {
    return this.hovered >= 0 ? this.hovered : this.pinned;
  }

  chips(answer, most) {
    const box = make("p", "answer tokens"), { tokens, mass } = this.look;
    this.chipsOf = tokens.map((text, token) => {
      const chip = make("span", "token", text), seen = SEEN.reduce((sum, name) => sum + (mass[name]?.[token] ?? 0), 0);
      if (!text.trim()) {
        chip.classList.add("blank");
        chip.dataset.shown = shownBlank(text);
      }
      chip.style.setProperty("--seen", seen.toFixed(3));
      chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.hover(token));
      chip.addEventListener("click", () => this.pin(this.pinned === token ? -1 : token));
      return chip;
    });
    const joined = tokens.join("");
    box.append(...this.chipsOf);
    if (tokens.length >= most && answer.startsWith(joined) && answer.length > joined.length) {
      const rest = make("span", "unseen", answer.slice(joined.length));
      rest.title = `Where it looked is measured of the first ${plural(most, "token")}`;
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
    this.bar.setAttribute("role", "img");
    this.legend = make("ul", "legend");
    this.figures = this.look.media.map((medium) => this.figure(medium));
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
    const label = make("label", "", "map"), select = make("select");
    ["mean of all heads", ...this.look.chosen.map(headName)].forEach((name, map) => {
      const option = make("option", "", name);
      option.value = map;
      select.append(option);
    });
    select.addEventListener("change", () => {
      this.map = Number(select.value);
      this.draw();
    });
    label.append(select);
    return label;
  }

  figure(medium) {
    const box = make("figure"), area = make("div", "canvas"), img = make("img"), canvas = make("canvas");
    const [frames, rows, columns] = medium.grid, soft = frames * rows * columns;
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
    box.append(area, make("figcaption", "", `as the model gets it: ${what}, ${plural(soft, "soft token")}`));
    return { box, medium, canvas };
  }

  draw() {
    const { look } = this, at = this.at(), weights = this.chosen(), largest = Math.max(...weights, 0);
    this.chipsOf.forEach((chip, token) => {
      chip.classList.toggle("on", token === at);
      chip.classList.toggle("pinned", token === this.pinned);
    });
    const parts = Object.entries(look.mass).map(([name, mass]) => [name, at >= 0 ? mass[at] : average(mass)]);
    const shares = parts.filter(([, value]) => value > 0);
    this.bar.replaceChildren(...shares.map(([name, value]) => {
      const part = make("i", `c-${name}`);
      part.style.width = `${100 * value}%`;
      return part;
    }));
    this.bar.setAttribute("aria-label", `Attention: ${shares.map(([name, value]) => `${SAID[name]} ${share(value)}`).join(", ")}`);
    this.legend.replaceChildren(...shares.map(([name, value]) => {
      const item = make("li");
      item.append(make("i", `key c-${name}`), `${SAID[name]} ${share(value)}`);
      return item;
    }));
    this.told.textContent = this.say(at, weights, largest);
    for (const figure of this.figures) light(figure, weights, largest);
  }

  say(at, weights, largest) {
    const { tokens, soft } = this.look;
    if (!tokens.length) return "The answer has no tokens.";
    const all = tokens.length === 1 ? "1 token" : `All ${plural(tokens.length, "token")}, on average`;
    const of = at >= 0 ? `Token ${at + 1} of ${tokens.length}, “${tokens[at].trim() || shownBlank(tokens[at])}”` : all;
    return soft && largest ? `${of}: most onto ${this.where(weights.indexOf(largest))} (${share(largest)})` : of;
  }

  // Where a soft token stands in its medium, in words.
  where(place) {
    const { media } = this.look, n = media.findLastIndex((medium) => medium.first <= place), medium = media[n];
    const [frames, rows, columns] = medium.grid, own = place - medium.first, cell = own % (rows * columns);
    const frame = Math.floor(own / (rows * columns));
    const inside = `row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
    const which = media.length > 1 ? ` of ${medium.kind === "audio" ? "recording" : medium.kind} ${n + 1}` : "";
    if (medium.kind === "audio") return `${((medium.seconds * own) / frames).toFixed(1)} s${which}`;
    return (medium.kind === "video" ? `frame ${frame + 1}, ` : "") + inside + which;
  }
}

// Lays shade over a medium, lighter where there is more attention, and frames the cell that has the most.
function light({ medium, canvas }, weights, largest) {
  const [frames, rows, columns] = medium.grid, pen = canvas.getContext("2d");
  const isSound = medium.kind === "audio", width = isSound ? 560 : medium.width, height = isSound ? 96 : medium.height;
  const scale = Math.max(1, Math.round(640 / width));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const across = isSound ? frames : medium.across, down = isSound ? 1 : Math.ceil(frames / across);
  const wide = canvas.width / across, tall = canvas.height / down, back = getComputedStyle(document.body).getPropertyValue("--card");
  let most = null;
  for (let frame = 0, place = medium.first; frame < frames; frame += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1, place += 1) {
        const left = (frame % across) * wide + (column * wide) / columns, top = Math.floor(frame / across) * tall + (row * tall) / rows;
        const cell = [Math.floor(left), Math.floor(top), Math.ceil(wide / columns), Math.ceil(tall / rows)];
        const part = largest ? Math.sqrt(weights[place] / largest) : 1;
        pen.clearRect(...cell);
        pen.fillStyle = `rgb(12 14 34 / ${(0.78 * (1 - part)).toFixed(3)})`;
        pen.fillRect(...cell);
        pen.fillStyle = `rgb(255 176 32 / ${largest ? (0.36 * part * part).toFixed(3) : 0})`;
        pen.fillRect(...cell);
        if (isSound) {  // a dark spectrogram shows little of a shade: a bar tells the rest
          pen.fillStyle = "rgb(255 255 255 / 0.5)";
          pen.fillRect(cell[0] + 1, canvas.height, cell[2] - 2, largest ? (-0.45 * canvas.height * weights[place]) / largest : 0);
        }
        if (largest && weights[place] === largest) most = cell;
      }
    }
  }
  if (medium.kind === "video") {  // what the sheet has behind the last frame, and lines between frames
    pen.fillStyle = back;
    pen.fillRect((frames % across) * wide, (down - 1) * tall, frames % across ? canvas.width : 0, tall);
    for (let n = 1; n < across; n += 1) pen.fillRect(n * wide - 2, 0, 4, canvas.height);
    for (let n = 1; n < down; n += 1) pen.fillRect(0, n * tall - 2, canvas.width, 4);
  }
  if (!most) return;
  for (const [colour, thick] of [["#000c", 5], ["#ffd27a", 2.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = (thick * canvas.width) / 520;
    pen.strokeRect(...most);
  }
}
