// The talk: one question, asked of each model, whose answers stream in. Nothing from people or models becomes markup.

const sides = store.models.map((model) => newSide(model));
let isAsking = false;

// One model with its talk.
function newSide(model) {
  const box = make("section", "side"), head = make("div", "side-head"), name = make("h2", "", model.name);
  const about = make("p", "over"), log = make("ol", "log");
  const side = { model, messages: [], box, log, job: null, abort: null };
  name.id = `name-${store.models.indexOf(model)}`;
  box.setAttribute("aria-labelledby", name.id);
  log.setAttribute("role", "log");
  head.append(name, about);
  side.tell = () => {
    const at = side.model.step === null ? [] : [`step ${number(side.model.step)}`];
    const takes = side.model.takes.length ? `takes ${side.model.takes.join(", ")}` : "takes text alone";
    about.textContent = [side.model.folder, ...at, takes].join(" · ");
  };
  side.tell();
  if (model.step !== null) {
    const button = make("button", "reload", "Newest checkpoint");
    button.type = "button";
    button.title = "Ask the newest checkpoint from now on";
    button.addEventListener("click", () => reload(side, button));
    head.append(button);
  }
  box.append(head, log);
  return side;
}

async function reload(side, button) {
  button.disabled = true;
  complain("");
  try {
    side.model = await (await post("/reload", { model: side.model.name })).json();
    side.tell();
  } catch (error) {
    complain(error.message);
  }
  button.disabled = false;
}

// Throws an Error with the server's own line for what it refuses.
async function post(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Error(told?.error?.message ?? `the server answers ${answer.status}`);
}

function complain(text) {
  one("problem").textContent = text;
  one("problem").hidden = !text;
}

// Asking.

const sent = ({ role, text, media = [] }) => ({
  role,
  content: role === "user" ? [...media.map(({ kind, url, name }) => ({ type: KINDS[kind], [KINDS[kind]]: { url, name } })), { type: "text", text }] : text,
});

function options() {
  const found = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const field = one(name);
    if (field.value !== "" && field.checkValidity()) found[name] = Number(field.value);
    else throw new Error(`${name}: give a number from ${field.min} to ${field.max}`);
  }
  if (!found.temperature) delete found.top_p;  // nothing is drawn
  return found;
}

async function ask() {
  const text = one("text").value.trim();
  complain("");
  if (isAsking || (!text && !files.length)) return;
  let chosen;
  try {
    chosen = options();
  } catch (error) {
    one("settings").open = true;
    return complain(error.message);
  }
  const message = { role: "user", text, media: files };
  files = [];
  one("text").value = "";
  grow();
  drawFiles();
  busy(true);
  const came = await Promise.all(sides.map((side) => answer(side, message, chosen)));
  busy(false);
  if (!came.some(Boolean)) {  // nothing was answered: the question comes back
    files = message.media;
    one("text").value = text;
    grow();
    drawFiles();
  }
  one("text").focus();
}

function busy(is) {
  isAsking = is;
  one("ask").hidden = is;
  one("stop").hidden = !is;
  one("clear").disabled = is;
}

// Asks one model; returns whether there is an answer.
async function answer(side, message, chosen) {
  const asked = make("li", "user"), made = make("li", "model"), text = make("p", "answer writing"), state = make("p", "state", "sent");
  if (message.media.length) {
    const media = make("div", "media");
    media.append(...message.media.map((file) => thumbnail(file)));
    asked.append(media);
  }
  if (message.text) asked.append(make("p", "", message.text));
  made.append(text, state);
  side.log.querySelector(".empty")?.remove();
  side.log.append(asked, made);
  made.scrollIntoView({ block: "nearest" });
  const system = one("system").value.trim(), turns = [...side.messages, message].map(sent);
  if (system) turns.unshift({ role: "system", content: system });
  let end = null, step = null;
  side.abort = new AbortController();
  try {
    const body = { model: side.model.name, messages: turns, ...chosen };
    for await (const event of lines(await post("/ask", body, side.abort.signal))) {
      const follows = isNearEnd();  // before it grows
      if (event.event === "start") ({ job: side.job, step } = event);
      if (event.event === "waiting") {
        const written = text.textContent ? "" : "thinking; a first question takes longer";
        state.textContent = event.ahead ? `${plural(event.ahead, "question")} before this one` : end ? "seeing where it looked" : written;
      }
      if (event.event === "text") {
        text.textContent += event.text;
        state.textContent = "writing";
      }
      if (event.event === "end") {
        end = event;
        text.classList.remove("writing");
        text.textContent = event.text;
        state.textContent = "seeing where it looked";
      }
      if (event.event === "look") {
        if (isFiniteLook(event.look)) {
          const looks = new Looks(event.look, end.text, end.tokens);
          text.replaceWith(looks.tokens);
          made.append(looks.panel);
        } else made.append(make("p", "failed", "The model's numbers are not finite: it looked nowhere, and its answer means nothing."));
      }
      if (event.event === "failed") throw new Error(event.message);
      if (follows) made.scrollIntoView({ block: "end" });
    }
    if (!end) throw new Error("the answer ended early: is the server still running?");
  } catch (error) {
    if (!end) asked.remove();
    made.append(make("p", "failed", error.name === "AbortError" ? "stopped" : error.message));
    made.scrollIntoView({ block: "end" });
  }
  side.job = side.abort = null;
  text.classList.remove("writing");
  state.textContent = end ? told(end, step) : "";
  if (!end) {
    text.remove();
    return false;
  }
  side.messages.push(message, { role: "assistant", text: end.text });
  return true;
}

function told(end, step) {
  const how = { stop: "", length: "cut at max_tokens", stopped: "stopped" }[end.finish];
  const counted = `${plural(end.tokens, "token")}, ${number(end.prompt_tokens)} before`;
  return [how, counted, step === null ? "" : `step ${number(step)}`].filter(Boolean).join(" · ");
}

async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (rest + value).split("\n");
    rest = found.pop();
    for (const line of found) yield JSON.parse(line);
  }
}

const isNearEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 260;

function stop() {
  for (const side of sides) {
    if (side.job) post("/stop", { job: side.job }).catch((error) => complain(error.message));
    else side.abort?.abort();
  }
}

function clear() {
  for (const side of sides) {
    side.messages = [];
    side.log.replaceChildren();
  }
  files = [];
  drawFiles();
  complain("");
  welcome();
  one("text").focus();
}

function welcome() {
  for (const { log, model } of sides) {
    const name = { image: "a picture", video: "a clip", audio: "a recording" }, takes = model.takes.map((kind) => name[kind]);
    const what = takes.length > 1 ? `${takes.slice(0, -1).join(", ")} or ${takes.at(-1)}` : takes[0];
    log.append(make("li", "empty", what ? `Add ${what}, and ask about it.` : "Ask: this model takes text alone."));
  }
}

function grow() {
  const area = one("text");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

document.body.classList.toggle("two", sides.length > 1);
one("sides").append(...sides.map(({ box }) => box));
for (const [name, value] of Object.entries(store.defaults)) if (one(name)) one(name).value = value;
const takes = [...new Set(sides.flatMap((side) => side.model.takes))];
one("picker").accept = takes.map((kind) => `${kind}/*`).join(",");
one("add").hidden = !takes.length;
one("picker").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
one("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
one("text").addEventListener("input", grow);
one("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
one("stop").addEventListener("click", stop);
one("clear").addEventListener("click", clear);
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) add([...event.clipboardData.files]);
});
let over = 0;
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    over = { dragenter: over + 1, dragover: over, dragleave: over - 1, drop: 0 }[name];
    document.body.classList.toggle("over", over > 0);
    if (name === "drop") add([...event.dataTransfer.files]);
  });
}
document.addEventListener("click", (event) => {
  if (!one("settings").contains(event.target)) one("settings").open = false;
});
welcome();
