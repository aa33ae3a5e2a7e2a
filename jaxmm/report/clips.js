// Videos and recordings of a document: a film strip, and a log-mel picture with its sound. page.js follows, and runs.

const seconds = (n) => `${n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 2 : 1 })} s`;
const clips = (doc, kind) => doc.spans.filter((span) => span[0] === kind);

function clipFacts(doc) {
  const films = clips(doc, "video").map((span) => store.films[span[4]]);
  const sounds = clips(doc, "audio").map((span) => store.sounds[span[4]]);
  const sum = (all, of) => all.reduce((total, each) => total + of(each), 0);
  const about = (all) => `${seconds(sum(all, (clip) => clip.seconds))}, ${plural(sum(all, (clip) => clip.soft), "soft token")}`;
  const rows = [];
  if (films.length) {
    const shots = plural(sum(films, (clip) => clip.shots.length), "temporal patch").replace("patchs", "patches");
    rows.push(["videos", `${films.length}: ${shots} of ${plural(films[0].each, "frame")}, ${about(films)}`]);
  }
  if (sounds.length) rows.push(["recordings", `${sounds.length}: ${about(sounds)}`]);
  return rows;
}

// What a mark in a row's bar shows of its clip: the first frames, or all of the log-mel picture.
function thumbnail(mark) {
  const { video, audio } = mark.dataset;
  if (video === undefined) {
    mark.style.backgroundImage = `url("${store.sounds[audio].src}")`;
    return;
  }
  const clip = store.films[video];
  if (!clip.src) return;
  mark.style.backgroundImage = `url("${clip.src}")`;
  const sheetRows = Math.ceil((clip.shots.length * clip.each) / clip.across);
  if (sheetRows > 1) Object.assign(mark.style, { backgroundSize: `auto ${100 * sheetRows}%`, backgroundPosition: "0 0" });
}

// One frame, cut out of the picture that has all of them.
function frame(clip, number, width, height, told) {
  const made = make("div", "frame"), sheetRows = Math.ceil((clip.shots.length * clip.each) / clip.across);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", told);
  made.style.width = `${width}px`;
  made.style.height = `${height}px`;
  if (clip.src) made.style.backgroundImage = `url("${clip.src}")`;
  made.style.backgroundSize = `${clip.across * width}px ${sheetRows * height}px`;
  made.style.backgroundPosition = `${-(number % clip.across) * width}px ${-Math.floor(number / clip.across) * height}px`;
  const svg = drawn("svg", { viewBox: `0 0 ${clip.columns} ${clip.rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [name, every] of [["patches", 1], ["soft", store.merge]]) {
    if ((width * every) / clip.columns < 10) continue;  // too fine to be seen
    const path = lines(clip.rows, clip.columns, every);
    svg.append(drawn("path", { class: `${name}-under`, d: path }), drawn("path", { class: `${name}-over`, d: path }));
  }
  made.append(svg);
  return made;
}

function shownAs(clip) {
  if (clip.exact) return "";
  if (!clip.src) return " · the page has no room for its frames: draw fewer rows";
  const part = clip.size[0] / clip.pixels[0];
  return part < 1 ? ` · shown as JPEG at ${Math.round(100 * part)}% of its size` : " · shown as JPEG";
}

// The temporal patches of a video in order. What is inside it as text stands below each: it was never people's.
function film(span) {
  const clip = store.films[span[4]], [wide, tall] = clip.pixels;
  const made = make("figure", "film"), strip = make("div", "strip");
  const most = Math.min(80 / tall, 150 / wide), scale = most < 1 ? most : Math.floor(most);
  const width = Math.max(1, Math.round(wide * scale)), height = Math.max(1, Math.round(tall * scale));
  const told = `${seconds(clip.seconds)} · ${plural(clip.shots.length, "temporal patch").replace("patchs", "patches")} of ` +
    `${plural(clip.each, "frame")} of ${wide} × ${tall} pixels, from patch ${number(clip.patch)} · ${plural(clip.soft, "soft token")} ` +
    `at positions ${range([span[1], span[2]])}` + shownAs(clip);
  const caption = make("figcaption", "", told);
  clip.shots.forEach((shot, index) => {
    const cell = make("div", "shot"), frames = make("div", "frames"), times = [...new Set(shot.times.map(seconds))];
    shot.times.forEach((time, k) => frames.append(frame(clip, index * clip.each + k, width, height, `Frame at ${seconds(time)}`)));
    cell.append(frames);
    if (shot.inside) {
      const stamp = make("span", "stamp", shot.stamp.trim() || shot.inside);
      stamp.title = `text inside the video, no target: ${shot.inside}`;
      cell.append(stamp);
    }
    const repeats = shot.times.length > 1 ? ", repeated" : "";
    cell.append(make("small", "", times.length > 1 ? `${times[0]} – ${times.at(-1)}` : times[0] + repeats));
    cell.append(make("small", "", plural(shot.last - shot.first, "token")));
    cell.addEventListener("pointerenter", () => {
      caption.textContent = `temporal patch ${index} · frames at ${times.join(" and ")} · ` +
        `${plural(shot.last - shot.first, "soft token")} at position${shot.last - shot.first === 1 ? "" : "s"} ` +
        range([shot.first, shot.last]) + (shot.inside ? ` · after the text ${shot.inside}` : "");
    });
    strip.append(cell);
  });
  strip.addEventListener("pointerleave", () => (caption.textContent = told));
  strip.title = "Enlarge, or make small again";
  strip.addEventListener("click", () => strip.classList.toggle("large"));
  strip.addEventListener("keydown", (event) => {
    if (event.key === "Enter") strip.classList.toggle("large");
  });
  strip.tabIndex = 0;
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", `Video of ${seconds(clip.seconds)}, as ${plural(clip.shots.length * clip.each, "frame")}`);
  made.append(strip, caption);
  return made;
}

// The log-mel frames of a recording: time to the right, low bands at the bottom, attention windows apart.
function sound(span) {
  const clip = store.sounds[span[4]], shownSeconds = (clip.seconds * clip.frames) / clip.own;
  const made = make("figure", "sound"), canvas = make("div", "canvas"), img = make("img");
  made.style.setProperty("--wide", `${Math.max(240, Math.round(shownSeconds * 90))}px`);
  img.src = clip.src;
  img.alt = `Log-mel picture of ${seconds(clip.seconds)} of sound`;
  const svg = drawn("svg", { viewBox: `0 0 ${clip.frames} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (clip.own < clip.frames) svg.append(drawn("rect", { class: "silence", x: clip.own, y: 0, width: clip.frames - clip.own, height: 1 }));
  const edges = clip.windows.slice(1).map((at) => `M${at} 0V1`).join("");
  if (edges) svg.append(drawn("path", { class: "window-under", d: edges }), drawn("path", { class: "window-over", d: edges }));
  const head = drawn("path", { class: "head-line", d: "M0 0V1", visibility: "hidden" });
  svg.append(head);
  canvas.append(img, svg);
  const axis = make("div", "axis");
  axis.append(make("span", "", "0"), make("span", "", seconds(shownSeconds / 2)), make("span", "", seconds(shownSeconds)));
  made.append(canvas, axis);
  if (clip.wav) made.append(player(clip, canvas, head));
  const notes = [
    clip.seconds < clip.whole - 1e-6 ? `the first ${seconds(clip.seconds)} of ${seconds(clip.whole)}` : seconds(clip.seconds),
    `${plural(clip.frames, "frame")} of ${clip.mels} bands, from ${number(clip.unit)}`,
    plural(clip.windows.length, "attention window"),
    `${plural(clip.soft, "soft token")} at position${clip.soft === 1 ? "" : "s"} ${range([span[1], span[2]])}`,
  ];
  if (clip.own < clip.frames) notes.push(`silence from ${seconds(clip.seconds)} on`);
  if (!clip.wav) notes.push("the page has no room for its sound: draw fewer rows");
  else if (clip.heard < clip.seconds - 1e-6) notes.push(`only its first ${seconds(clip.heard)} can be heard here`);
  made.append(make("figcaption", "", notes.join(" · ")));
  return made;
}

// Plays what the model hears; a line shows where, and a click on the picture goes there.
function player(clip, canvas, head) {
  const audio = make("audio"), frames = clip.own / clip.seconds;
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = clip.wav;
  const follow = () => {
    head.setAttribute("d", `M${audio.currentTime * frames} 0V1`);
    head.setAttribute("visibility", "visible");
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", follow);
  audio.addEventListener("seeked", follow);
  canvas.classList.add("seekable");
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    audio.currentTime = Math.min(clip.heard, ((event.clientX - box.left) / box.width) * (clip.frames / frames));
  });
  return audio;
}
