// Files of the next question, kept as data URIs until they are asked about.

const KINDS = { image: "image_url", video: "video_url", audio: "audio_url" };
const MOST_BYTES = 44 * 2 ** 20;  // of all files of a talk: in base64 they are a third larger
let files = [];

function read(file) {
  return new Promise((found, failed) => {
    const reader = new FileReader();
    reader.onload = () => found(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function add(chosen) {
  complain("");
  for (const file of chosen) {
    const kind = file.type.split("/")[0];
    if (!(kind in KINDS)) {
      complain(`${file.name}: this is no picture, video or recording`);
      continue;
    }
    const unable = sides.find((side) => !side.model.takes.includes(kind));
    if (unable) {
      complain(`${file.name}: ${unable.model.name} takes no ${{ image: "pictures", video: "videos", audio: "recordings" }[kind]}`);
      continue;
    }
    const before = sides[0].messages.flatMap((message) => message.media ?? []);
    if ([...before, ...files].reduce((sum, one) => sum + one.size, file.size) > MOST_BYTES) {
      complain(`${file.name}: the files of one talk may have ${MOST_BYTES / 2 ** 20} MiB together`);
      continue;
    }
    try {
      files.push({ kind, name: file.name, size: file.size, url: await read(file) });
    } catch (error) {
      complain(error.message);
    }
  }
  drawFiles();
}

function thumbnail({ kind, name, url }, isSmall = false) {
  const made = make(kind === "image" ? "img" : kind);
  made.src = url;
  if (kind === "image") made.alt = name;
  else {
    made.controls = kind === "audio" || !isSmall;
    made.setAttribute("aria-label", name);
    made.preload = "metadata";
  }
  return made;
}

function drawFiles() {
  one("files").replaceChildren(...files.map((file) => {
    const item = make("li"), away = make("button", "", "×");
    away.type = "button";
    away.setAttribute("aria-label", `Remove ${file.name}`);
    away.addEventListener("click", () => {
      files = files.filter((other) => other !== file);
      drawFiles();
      one("text").focus();
    });
    item.append(thumbnail(file, true), away);
    return item;
  }));
}
