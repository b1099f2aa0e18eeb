// The page: sends a clip to the API of this service and shows what comes back. No address here is absolute.
"use strict";

const $ = (id) => document.getElementById(id);
const player = $("player");
const NAMES = { video: ["Picture", "pictures"], audio: ["Sound", "sound"] }; // other modalities use their own names
const SHOWN_REFERENCES = 5;
const LONG_SECONDS = 30; // a longer clip is also captioned in segments
let clip = null; // { file, token, version }: the clip on the page
let model = {}; // the last answer of /model
let drawn = 0; // seconds on the time axis, 0 if unknown

// ---------------------------------------------------------------- talking to the service

class Failure extends Error {
  constructor(status, body) {
    super(explain(status, body));
    this.status = status;
  }
}

function explain(status, body) {
  if (status === 401) return "This service requires an API key. Reload the page and enter the key as the password.";
  if (!status) return "No answer from the service. Check your connection and try again.";
  return sentence(body?.error ?? `The service answered with status ${status}.`);
}

function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function address(path) {
  const url = new URL(path, location.href);
  url.username = url.password = ""; // a browser refuses requests to addresses that hold a password
  return url.href;
}

async function get(path) {
  const answer = await fetch(address(path)).catch(() => ({ status: 0 }));
  const body = answer.status ? await answer.json().catch(() => null) : null;
  if (!answer.ok) throw new Failure(answer.status, body);
  return body;
}

// XMLHttpRequest, because fetch does not report the progress of an upload.
function post(path, fields, { uploaded = () => {}, event = () => {} } = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const request = new XMLHttpRequest();
  const streams = () => request.getResponseHeader("Content-Type")?.startsWith("text/event-stream");
  let read = 0, failure = null;
  const readEvents = () => {
    for (let end; (end = request.responseText.indexOf("\n\n", read)) >= 0; read = end + 2) {
      const [, kind, data] = request.responseText.slice(read, end).match(/^event: (\w+)\ndata: (.*)$/);
      if (kind === "error") failure = new Failure(JSON.parse(data).status, JSON.parse(data));
      else event(kind, JSON.parse(data));
    }
  };
  return new Promise((resolve, reject) => {
    request.open("POST", address(path));
    request.upload.onprogress = ({ loaded, total }) => uploaded(total ? loaded / total : 0);
    request.onprogress = () => streams() && readEvents();
    request.onerror = () => reject(new Failure(0));
    request.onload = () => {
      if (streams()) return failure ? reject(failure) : resolve();
      let body = null;
      try { body = JSON.parse(request.responseText); } catch { /* not from the service: the status says enough */ }
      return request.status === 200 ? resolve(body) : reject(new Failure(request.status, body));
    };
    request.send(form);
  });
}

// Send `about` by its token, which saves an upload, or with the file if the service no longer has the clip.
async function postClip(path, about, fields, listeners) {
  try {
    return await post(path, about.token ? { clip: about.token, ...fields } : { video: about.file, ...fields }, listeners);
  } catch (failure) {
    if (failure.status !== 410) throw failure;
    about.token = "";
    return post(path, { video: about.file, ...fields }, listeners);
  }
}

// ---------------------------------------------------------------- the model in service

async function showModel() {
  try {
    model = await get("model");
    showVersion(model.model_version);
    $("warning").textContent = sentence(model.warning);
    $("warning").hidden = !model.warning;
    mayAsk(Boolean(clip) && !clip.hopeless);
  } catch (failure) {
    if (failure.status !== 503) return;
    $("model").textContent = "The model is loading …";
    setTimeout(showModel, 3000);
  }
}

function showVersion(version) {
  $("model").replaceChildren("Model ", element("b", version));
  if (version !== model.model_version) showModel(); // another version came into service
}

// ---------------------------------------------------------------- a clip and its caption

function choose(file) {
  if (!file) return;
  const hadFocus = document.activeElement === $("file");
  clip = { file, token: "", version: "" };
  reset();
  if (model.max_upload_mb && file.size > model.max_upload_mb * 2 ** 20) {
    clip.hopeless = true;
    showProblem(`This file is ${Math.ceil(file.size / 2 ** 20)} MB; the service takes at most ${model.max_upload_mb} MB. Cut the clip or scale it down.`);
    return;
  }
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  $("name").textContent = $("name").title = file.name;
  $("drop").classList.add("filled");
  $("stage").hidden = false;
  if (hadFocus) $("another").focus();
  caption(clip);
  showReferences(clip);
}

function reset() {
  for (const id of ["attention", "challenger", "problem", "references", "segments", "stage", "unplayable"]) $(id).hidden = true;
  player.hidden = false;
  $("drop").classList.remove("filled");
  $("answers").replaceChildren();
  say("The caption will appear here.", "empty");
  showOwed([]);
  mayAsk(false);
}

function mayAsk(may) {
  const able = may && model.answers !== false;
  $("question").disabled = $("send").disabled = !able;
  $("ask-note").hidden = able;
  $("ask-note").textContent = model.answers === false
    ? "This model was never trained on questions; it only captions." : "Choose a clip first.";
}

async function caption(about) {
  const current = () => about === clip;
  const bar = $("caption").querySelector("progress");
  $("problem").hidden = true;
  $("captions").setAttribute("aria-busy", "true");
  say("Uploading …", "working");
  mayAsk(true);
  const uploaded = (part) => {
    if (!current()) return;
    bar.hidden = part >= 1;
    bar.value = part;
    if (part >= 1) say("Reading the clip …", "working");
  };
  const event = (kind, data) => {
    if (!current()) return;
    if (kind === "text") say(data.text, "");
    if (kind === "caption") captioned(about, data);
    if (kind === "challenger") showChallenger(data);
  };
  try {
    await postClip("caption_stream", about, { challenger: Boolean(model.shadow), explain: true }, { uploaded, event });
    if (current() && $("challenger").querySelector(".working")) $("challenger").hidden = true; // no challenger is loaded
  } catch (failure) {
    if (current()) refused(about, failure);
  } finally {
    if (current()) {
      bar.hidden = true;
      $("captions").setAttribute("aria-busy", "false");
    }
  }
}

function captioned(about, answer) {
  about.token = answer.clip;
  about.version = answer.model_version;
  say(worded(answer), "", describe(answer));
  showOwed(answer.words ?? []);
  $("captions").setAttribute("aria-busy", "false");
  showVersion(answer.model_version);
  if (model.shadow) {
    $("caption-title").textContent = "Champion";
    $("challenger").hidden = false;
    fill($("challenger"), "Captioning …", "working", "runs in shadow, not in service");
  }
  showAttention(about, null);
}

function refused(about, failure) {
  say("The caption will appear here.", "empty");
  const hopeless = about.hopeless = [400, 413, 415].includes(failure.status);
  if (hopeless) mayAsk(false);
  putAway();
  showProblem(failure.message, hopeless ? null : failure.status === 401 ? () => location.reload() : () => caption(about));
}

// A file that neither the service nor the browser can read leaves the page; either may find out first.
function putAway() {
  if (!clip?.hopeless || $("unplayable").hidden) return;
  $("stage").hidden = true;
  $("drop").classList.remove("filled");
}

function showChallenger(answer) {
  fill($("challenger"), answer.caption ?? "No answer before the timeout.", answer.caption === null ? "empty" : "",
    `${answer.model_version}\nruns in shadow, not in service`);
}

// [word, sound, picture] in nats: a word needs what makes it less than half as likely when missing.
function needs([, sound, picture]) {
  return [["picture", picture], ["sound", sound]].filter(([, nats]) => nats > Math.LN2);
}

function worded({ caption, words }) {
  if (!words?.length) return caption;
  return words.flatMap((word) => {
    const needed = needs(word);
    if (!needed.length) return [word[0], " "];
    const span = element("span", word[0], needed.map(([kind]) => kind).join(" "));
    span.title = needed.map(([kind, nats]) => `${times(nats)} less likely without the ${kind}`).join(", ");
    span.style.setProperty("--tint", `${Math.min(60, 15 * Math.max(...needed.map(([, nats]) => nats)))}%`);
    return [span, " "];
  });
}

function times(nats) {
  return nats < 7 ? `${Math.exp(nats).toPrecision(2)} times` : "over 1000 times";
}

// In words as well as in color.
function showOwed(words) {
  const lists = ["picture", "sound"].map((kind) => [kind, words.filter((word) => needs(word).some(([need]) => need === kind))]);
  const needed = lists.filter(([, list]) => list.length);
  $("owed").replaceChildren(...needed.map(([kind, list]) =>
    element("div", ["needs the ", element("span", kind, kind), `: ${list.map(([word]) => word).join(", ")}`])));
  $("owed").hidden = !needed.length;
}

function showProblem(text, retry = null) {
  $("problem").querySelector("p").textContent = text;
  $("retry").hidden = !retry;
  $("retry").onclick = retry;
  $("problem").hidden = false;
}

function say(text, kind, note = "") {
  fill($("caption"), text, kind, note);
}

function fill(card, text, kind, note) {
  const said = card.querySelector(".said");
  said.replaceChildren(...[text].flat());
  said.className = `said ${kind}`;
  card.querySelector("small").textContent = note;
}

function describe({ model_version, seconds, timings }) {
  const s = (value) => `${value.toFixed(2)} s`;
  return `${model_version} · ${s(seconds)}\nqueue ${s(timings.queue)} · model ${s(timings.model)}`;
}

// ---------------------------------------------------------------- questions

async function ask(event) {
  event.preventDefault();
  const about = clip, question = $("question").value.trim();
  if (!question || !about) return $("question").focus();
  const said = element("p", "Answering …", "said working"), note = element("small", "");
  $("answers").prepend(element("li", [element("p", question, "question"), said, note]));
  $("question").value = "";
  try {
    const answer = await postClip("ask", about, { question, explain: true });
    about.token = answer.clip;
    said.replaceChildren(...[worded(answer)].flat());
    said.className = "said";
    note.textContent = describe(answer);
    showVersion(about.version = answer.model_version);
    if (about === clip) showAttention(about, question);
  } catch (failure) {
    said.textContent = failure.message;
    said.className = "";
  }
}

// ---------------------------------------------------------------- a long clip in segments

async function showSegments(about) {
  const every = $("every").value, list = $("segments").querySelector("ol");
  const current = () => about === clip && every === $("every").value;
  list.replaceChildren(element("li", "Captioning …", "working"));
  $("subtitles").hidden = true;
  $("segments").hidden = false;
  try {
    const { segments } = await postClip("caption", about, { segments: every });
    if (!current()) return;
    list.replaceChildren(...segments.map(segment));
    const cues = segments.map(({ start, end, caption }) => `${stamp(start)} --> ${stamp(end)}\n${escaped(caption)}\n`);
    URL.revokeObjectURL($("subtitles").href);
    $("subtitles").href = URL.createObjectURL(new Blob([["WEBVTT\n", ...cues].join("\n")], { type: "text/vtt" }));
    $("subtitles").download = `${stem(about.file.name)}.vtt`;
    $("subtitles").hidden = false;
    follow();
  } catch (failure) {
    if (current()) list.replaceChildren(element("li", failure.message));
  }
}

function segment({ start, end, caption }) {
  const made = element("button", [element("time", `${minutes(start)} – ${minutes(end)}`), element("span", caption)]);
  made.type = "button";
  Object.assign(made.dataset, { start, end });
  made.addEventListener("click", () => { player.currentTime = start + 0.001; });
  return element("li", [made]);
}

function stamp(seconds) {
  return new Date(1000 * seconds).toISOString().slice(11, 23);
}

function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function stem(name) {
  return name.replace(/\.[^.]+$/, "");
}

// ---------------------------------------------------------------- what people said

async function showReferences(about) {
  const { captions } = await get(`references/${encodeURIComponent(stem(about.file.name))}`).catch(() => ({ captions: [] }));
  if (about !== clip || !captions.length) return;
  const list = $("references").querySelector("ul"), more = $("references").querySelector("button");
  const show = (count) => list.replaceChildren(...captions.slice(0, count).map((text) => element("li", text)));
  show(SHOWN_REFERENCES);
  more.hidden = captions.length <= SHOWN_REFERENCES;
  more.textContent = `Show all ${captions.length}`;
  more.onclick = () => { show(captions.length); more.hidden = true; };
  $("references").hidden = false;
}

// ---------------------------------------------------------------- attention over time

async function showAttention(about, question) {
  let told;
  try {
    told = await postClip("attention", about, question === null ? {} : { question });
  } catch { return; } // the caption is on the page already
  if (about !== clip) return;
  drawn = told.seconds ?? 0;
  const other = told.model_version === about.version ? "" : ` (by ${told.model_version})`;
  $("attention-about").textContent = (question === null ? "While captioning" : `While answering “${question}”`) + other;
  $("rows").replaceChildren(...Object.entries(told.modalities).map(([kind, moments]) => row(kind, moments)));
  const marks = drawn ? [0, 1, 2, 3, 4].map((part) => clock((drawn * part) / 4)) : ["start", "end"];
  $("axis").replaceChildren(...marks.map((mark) => element("span", mark)));
  $("attention").hidden = false;
  follow();
  if (question === null && drawn > LONG_SECONDS) showSegments(about);
}

function row(kind, moments) {
  const [name, used] = NAMES[kind] ?? [kind, kind];
  const title = element("div", [element("i", ""), name], "row-name");
  if (!moments?.length) {
    const why = moments ? `This clip has no ${used}.` : `This model does not use ${used}.`;
    return element("div", [title, element("p", why)], `row ${kind}`);
  }
  return element("div", [title, bars(name, moments)], `row ${kind}`);
}

function bars(name, moments) {
  const whole = drawn || 1, top = Math.max(...moments.map((moment) => moment.weight)), even = 1 / moments.length;
  const x = (seconds) => (1000 * seconds) / whole, gap = Math.min(6, 0.1 * x(moments[0].end));
  const chart = drawing("svg", { viewBox: "0 -6 1000 106", preserveAspectRatio: "none", tabindex: 0, role: "slider",
    "aria-label": `${name}: attention over time`, "aria-valuemin": 0, "aria-valuemax": moments.length - 1 });
  for (const { start, end, weight } of moments) {
    const height = (100 * weight) / top;
    chart.append(drawing("rect", { x: x(start) + gap / 2, y: 100 - height, width: Math.max(1, x(end) - x(start) - gap), height }));
  }
  const y = 100 - (100 * even) / top;
  chart.append(drawing("line", { x1: 0, x2: 1000, y1: y, y2: y }));
  steer(chart, moments, even);
  return chart;
}

// Pointer: show a moment, click to jump to it. Keyboard: arrows, Home and End do both.
function steer(chart, moments, even) {
  let at = moments.indexOf(moments.reduce((best, moment) => (moment.weight > best.weight ? moment : best)));
  const percent = (part) => `${(100 * part).toFixed(1)} %`;
  const text = ({ start, end, weight }) =>
    `${drawn ? `${clock(start)} to ${clock(end)}: ` : ""}${percent(weight)} of the attention; an equal share is ${percent(even)}`;
  const mark = (place, visible = true) => {
    chart.querySelectorAll("rect").forEach((bar, number) => bar.classList.toggle("on", visible && number === place));
    chart.setAttribute("aria-valuenow", at = place);
    chart.setAttribute("aria-valuetext", text(moments[place]));
    const tip = $("tip"), box = chart.getBoundingClientRect(), frame = $("strips").getBoundingClientRect();
    tip.hidden = !visible;
    tip.textContent = text(moments[place]);
    const middle = (box.width * (moments[place].start + moments[place].end)) / 2 / (drawn || 1), half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(middle, half), box.width - half)}px`;
    tip.style.top = `${box.top - frame.top - 6}px`;
  };
  const under = ({ clientX }) => {
    const box = chart.getBoundingClientRect(), seconds = ((clientX - box.left) / box.width) * (drawn || 1);
    return Math.max(0, moments.findLastIndex((moment) => moment.start <= seconds));
  };
  const jump = (place) => { player.currentTime = moments[place].start * (drawn ? 1 : player.duration || 0) + 0.001; };
  chart.addEventListener("pointermove", (event) => mark(under(event)));
  chart.addEventListener("pointerleave", () => mark(at, false));
  chart.addEventListener("focus", () => chart.matches(":focus-visible") && mark(at));
  chart.addEventListener("blur", () => mark(at, false));
  chart.addEventListener("click", (event) => jump(under(event)));
  chart.addEventListener("keydown", (event) => {
    const last = moments.length - 1;
    const next = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    mark(Math.min(Math.max(next, 0), last));
    jump(at);
  });
  mark(at, false);
}

function follow() {
  const length = drawn || player.duration;
  $("now").hidden = !player.currentTime;
  $("now").style.left = `${length ? 100 * Math.min(1, player.currentTime / length) : 0}%`;
  for (const part of $("segments").querySelectorAll("button")) {
    const playing = player.currentTime >= part.dataset.start && player.currentTime < part.dataset.end;
    playing ? part.setAttribute("aria-current", "true") : part.removeAttribute("aria-current");
  }
}

function clock(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : minutes(seconds);
}

function minutes(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

// ---------------------------------------------------------------- elements and events

// Text from a model, a file name or the service only ever becomes a text node.
function element(tag, content, kind = "") {
  const made = document.createElement(tag);
  made.append(...[content].flat());
  if (kind) made.className = kind;
  return made;
}

function drawing(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

$("file").addEventListener("change", ({ target }) => { const [file] = target.files; choose(file); target.value = ""; });
$("another").addEventListener("click", () => $("file").click());
$("ask").addEventListener("submit", ask);
$("every").addEventListener("change", () => showSegments(clip));
for (const name of ["timeupdate", "seeking"]) player.addEventListener(name, follow);
player.addEventListener("error", () => { player.hidden = true; $("unplayable").hidden = false; putAway(); });
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
$("drop").addEventListener("dragover", () => $("drop").classList.add("over"));
for (const name of ["dragleave", "drop"]) $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
showModel();
