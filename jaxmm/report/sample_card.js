// A held-out sample: what each token of its answer looks at, over the picture, film or spectrogram.

// From nothing to the most; each step is brighter than the one before. That of spectrograms has none of their colours.
const HEAT = [[14, 12, 44, 165], [74, 24, 128, 160], [170, 40, 120, 155], [236, 86, 70, 150], [252, 160, 54, 150], [255, 226, 110, 150], [255, 250, 214, 150]];
const ICE = [[6, 10, 24, 165], [8, 38, 70, 140], [10, 92, 130, 120], [30, 160, 180, 115], [96, 224, 220, 130], [200, 255, 244, 150]];

function ramp(colours, part) {
  const at = Math.max(0, Math.min(1, part)) * (colours.length - 1), n = Math.min(Math.floor(at), colours.length - 2);
  return colours[n].map((value, i) => value + (colours[n + 1][i] - value) * (at - n));
}

const shownToken = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +$/, "␣") || "∅";
const KINDS = { image: "picture", video: "film", audio: "recording" };

class Card {
  constructor(sample, number) {
    this.sample = sample;
    this.maps = new Maps(sample);
    this.pinned = this.token = -1;  // -1 is the mean of all tokens
    this.item = make("li", "card");
    this.item.tabIndex = -1;
    const answer = sample.answer.trim(), truth = sample.truth.trim(), cut = `cut after ${sample.tokens.length} tokens`;
    this.isRight = sample.cut ? answer !== "" && truth.startsWith(answer) : answer === truth;
    this.canvases = [];
    const question = make("p", "question", sample.question), verdict = make("p", "verdict");
    question.dir = "auto";
    verdict.append(make("b", this.isRight ? "right" : "wrong", this.isRight ? (sample.cut ? "✓ right so far" : "✓ right") : "✗ wrong"));
    if (sample.cut) verdict.append(` · ${cut}`);
    if (!this.isRight || sample.cut) {
      const wanted = make("span", "", sample.truth);
      wanted.dir = "auto";
      verdict.append(" · true: ", wanted);
    }
    this.stack = make("div", "stack mini");
    this.told = make("p", "told");
    this.told.setAttribute("aria-live", "polite");
    this.item.append(...sample.media.map((medium, n) => this.picture(medium, n)), question, this.chips(number), verdict, this.stack, this.told);
  }

  // Attention of the chosen token onto each soft token, by the chosen head; null where that head's map is not kept.
  weights() {
    const { chosen } = this.sample, { at } = chosenHead;
    const head = at === null ? 0 : 1 + chosen.findIndex(([layer, head]) => layer === at[0] && head === at[1]);
    return at !== null && head === 0 ? null : this.maps.weights(head, this.token);
  }

  picture(medium, n) {
    const figure = make("figure", `seen ${medium.kind}`), box = make("div", "canvas"), img = make("img");
    const cells = new Cells(medium), isSound = medium.kind === "audio";
    if (medium.src) img.src = medium.src;
    img.alt = `${this.nameOf(n)} of a held-out question`;
    img.width = medium.width;
    img.height = medium.height;
    const canvas = make("canvas"), svg = drawn("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
    canvas.width = cells.width;
    canvas.height = cells.height;
    canvas.setAttribute("role", "img");
    svg.setAttribute("viewBox", `0 0 ${canvas.width} ${canvas.height}`);
    if (!isSound) box.style.aspectRatio = `${medium.width} / ${medium.height}`;
    box.append(img, canvas, svg);
    figure.append(box);
    const caption = make("figcaption"), sheet = { medium, canvas, svg, cells, isSound, caption, name: this.nameOf(n) };
    figure.append(caption);
    if (isSound) {
      sheet.lane = make("div", "lane-of-sound");
      figure.prepend(sheet.lane);
    }
    this.canvases.push(sheet);
    const cellAt = (event) => {
      const area = box.getBoundingClientRect(), x = ((event.clientX - area.left) / area.width) * canvas.width;
      return cells.of(Math.floor(x), Math.floor(((event.clientY - area.top) / area.height) * canvas.height));
    };
    box.addEventListener("pointermove", (event) => {
      const n = cellAt(event), weights = this.weights();
      if (n === null || !weights) return;
      const name = isSound ? this.time(medium, n) : cells.name(n);
      caption.textContent = `${name}: ${(100 * weights[medium.first + n]).toFixed(2)}% of the attention`;
    });
    box.addEventListener("pointerleave", () => this.caption(sheet));
    box.title = "Click to see it without the overlay";
    box.addEventListener("click", () => figure.classList.toggle("plain"));
    return figure;
  }

  // "picture", or of several of a kind "picture 2".
  nameOf(n) {
    const { media } = this.sample, kind = (medium) => KINDS[medium.kind] ?? "picture", own = kind(media[n]);
    const like = media.filter((medium) => kind(medium) === own);
    return like.length > 1 ? `${own} ${like.indexOf(media[n]) + 1}` : own;
  }

  time(medium, n) {
    if (!medium.seconds) return `soft token ${n}`;
    const each = medium.seconds / medium.grid[0];
    return `${(n * each).toFixed(2)} to ${((n + 1) * each).toFixed(2)} s`;
  }

  // The answer's tokens, and the mean of all before them: one stop of the Tab key, arrows choose.
  chips(number) {
    const list = make("div", "chips");
    list.setAttribute("role", "radiogroup");
    list.setAttribute("aria-label", `Answer of sample ${number}, by token`);
    this.buttons = [-1, ...this.sample.tokens.keys()].map((token) => {
      const chip = make("button", token < 0 ? "chip mean" : "chip", token < 0 ? "all" : shownToken(this.sample.tokens[token]));
      chip.type = "button";
      chip.setAttribute("role", "radio");
      chip.dir = "auto";
      chip.setAttribute("aria-label", token < 0 ? "mean over all tokens" : `token ${token + 1}: ${this.sample.tokens[token]}`);
      chip.addEventListener("click", () => this.pin(token));
      chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.choose(token));
      return chip;
    });
    list.addEventListener("pointerleave", () => this.choose(this.pinned));
    list.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const to = { Home: -1, End: this.sample.tokens.length - 1 }[event.key];
      if ((by === undefined && to === undefined) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.pin(to ?? Math.max(-1, Math.min(this.sample.tokens.length - 1, this.pinned + by)));
      this.buttons[this.pinned + 1].focus();
    });
    list.append(...this.buttons);
    return list;
  }

  pin(token) {
    this.pinned = token;
    this.choose(token);
  }

  choose(token) {
    this.token = token;
    this.draw();
  }

  draw() {
    const weights = this.weights();
    this.weightsNow = weights;
    const most = weights ? Math.max(...weights, 1e-12) : 1;
    for (const sheet of this.canvases) {
      this.paint(sheet, weights, most);
      this.caption(sheet);
    }
    this.buttons.forEach((chip, n) => {
      chip.setAttribute("aria-checked", n - 1 === this.token);
      chip.tabIndex = n - 1 === this.pinned ? 0 : -1;
    });
    drawShares(this.stack, shares(this.sample.mass, this.token), "Of all heads");
    this.tell();
  }

  tell() {
    const weights = this.weightsNow, { at } = chosenHead;
    const token = this.token < 0 ? "All tokens" : `“${shownToken(this.sample.tokens[this.token])}”`;
    if (!weights) {
      this.told.textContent = `The map of ${headName(at)} is not kept for this sample.`;
      return;
    }
    const sum = weights.reduce((a, b) => a + b, 0), { media } = this.sample;
    const where = media.length === 1 ? `the ${this.nameOf(0)}` : media.length === 2 ? "both" : `all ${media.length}`;
    this.told.textContent = `${token}: ${share(sum)} onto ${where}`;
  }

  // Of one picture: how much goes to it, and to its cell with a frame.
  caption({ medium, cells, caption, name }) {
    const weights = this.weightsNow;
    caption.textContent = "";
    if (!weights) return;
    const own = weights.slice(medium.first, medium.first + cells.count), sum = own.reduce((a, b) => a + b, 0);
    caption.textContent = `${name[0].toUpperCase()}${name.slice(1)}: ${share(sum)}, in the white frame ${share(Math.max(...own))}`;
  }

  paint({ medium, canvas, svg, cells, isSound, lane }, weights, most) {
    const { frames, rows, columns, across } = cells, pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    svg.replaceChildren();
    lane?.replaceChildren();
    if (!weights) return;
    const image = pen.createImageData(canvas.width, canvas.height);
    let top = -1, topValue = 0;
    for (let n = 0; n < cells.count; n += 1) {
      const value = weights[medium.first + n], [x, y] = cells.at(n), part = Math.sqrt(value / most);
      image.data.set(ramp(isSound ? ICE : HEAT, part), 4 * (y * canvas.width + x));
      if (value > topValue) [top, topValue] = [n, value];
      if (lane) {
        const bar = make("i");
        bar.style.height = `${(100 * value) / most}%`;
        lane.append(bar);
      }
    }
    pen.putImageData(image, 0, 0);
    if (top < 0) return;
    const [x, y] = cells.at(top);
    for (const name of ["under", "over"]) svg.append(drawn("rect", { class: `most ${name}`, x, y, width: 1, height: 1 }));
    if (frames > 1 && !isSound) {
      let path = "";
      for (let n = 1; n < across; n += 1) path += `M${n * columns} 0V${canvas.height}`;
      for (let n = 1; n < canvas.height / rows; n += 1) path += `M0 ${n * rows}H${canvas.width}`;
      svg.append(drawn("path", { class: "edges", d: path }));
    }
  }
}
