// Attention over media, as the page of a run and that of a talk draw it: the maps of a sample, where soft tokens stand
// on a picture, and shares of attention by what stands at a position. A sample is what jaxmm/monitor/heatmaps.py keeps.

const SAID = store.words;
const MEDIA = ["image", "video", "audio"];
const headName = ([layer, head]) => `layer ${layer}, head ${head}`;
const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}%`;
const average = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);

function choice(label, options, changed) {
  const made = make("label"), select = make("select");
  options.forEach(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    select.append(option);
  });
  select.addEventListener("change", () => changed(select.value));
  made.append(label, select);
  return [made, select];
}

// The maps of a sample. Map 0 is the mean over all layers and heads, the others are those of its `chosen` heads.
class Maps {
  constructor({ maps, tokens, soft }) {
    this.scale = maps.scale;
    this.count = tokens.length;
    this.soft = soft;
    this.text = maps.data;
  }

  // Attention of a token onto each soft token; -1 is the mean over all tokens.
  weights(map, token) {
    this.bytes ??= Uint8Array.from(atob(this.text), (letter) => letter.charCodeAt(0));
    const found = new Float64Array(this.soft), of = token < 0 ? [...Array(this.count).keys()] : [token];
    for (const one of of) {
      const start = (map * this.count + one) * this.soft;
      for (let n = 0; n < this.soft; n += 1) found[n] += (this.scale[map] * (this.bytes[start + n] / 255) ** 2) / of.length;
    }
    return found;
  }
}

// Where the soft tokens of a medium stand on its picture, in cells: a film has `across` frames in a row, a recording
// has time to the right. All numbers are from 0.
class Cells {
  constructor({ kind, grid, across }) {
    [this.frames, this.rows, this.columns] = grid;
    this.across = kind === "audio" ? this.frames : Math.min(across, this.frames);
    this.down = Math.ceil(this.frames / this.across);
    this.width = this.across * this.columns;
    this.height = this.down * this.rows;
    this.count = this.frames * this.rows * this.columns;
  }

  // [x, y] of a soft token.
  at(n) {
    const { frame, row, column } = this.parts(n);
    return [(frame % this.across) * this.columns + column, Math.floor(frame / this.across) * this.rows + row];
  }

  // The soft token at [x, y]; null where there is none.
  of(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return null;
    const frame = Math.floor(y / this.rows) * this.across + Math.floor(x / this.columns);
    return frame < this.frames ? (frame * this.rows + (y % this.rows)) * this.columns + (x % this.columns) : null;
  }

  // A soft token of a picture or film in words.
  name(n) {
    const { frame, row, column } = this.parts(n);
    return `${this.frames > 1 ? `frame ${frame}, ` : ""}row ${row}, column ${column}`;
  }

  parts(n) {
    const cell = n % (this.rows * this.columns);
    return { frame: Math.floor(n / (this.rows * this.columns)), row: Math.floor(cell / this.columns), column: cell % this.columns };
  }
}

// [class, share] of those that have any, of a token; -1 is the mean over all tokens.
const shares = (mass, token) =>
  Object.entries(mass).map(([name, values]) => [name, token < 0 ? average(values) : values[token]]).filter(([, value]) => value > 0);

const said = (name, value) => `${SAID[name] ?? name} ${share(value)}`;

// Fills a bar with a part for each of `shares`.
function drawShares(bar, parts, label) {
  bar.replaceChildren(...parts.map(([name, value]) => {
    const part = make("i", `c-${name}`);
    part.style.width = `${100 * value}%`;
    part.title = said(name, value);
    return part;
  }));
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${label}: ${parts.map(([name, value]) => said(name, value)).join(", ")}`);
}

function legendItem(name, text) {
  const item = make("li");
  item.append(make("i", `key c-${name}`), text);
  return item;
}
