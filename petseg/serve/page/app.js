// The page of `petseg serve`: its state, what changes it, and what it looks like; `draw` shows the state after each change.

import { downloadZip } from "./vendor/client-zip.js";
import { html, nothing, render } from "./vendor/lit-html.js";
import { LARGEST_SHOWN, decoded, drawStroke, finished, shown } from "./cutout.js";
import { agreement, clamped, fileName, megabytes, milliseconds, named, objects, percent, sees, stem, uniqueStems } from "./figures.js";

const TITLES = { cutout: "Cut-out", overlay: "Overlay", mask: "Mask", classes: "Classes", trimap: "Trimap", json: "JSON" };
const PAGES = { try: "Cut out", comparison: "Comparison", api: "API" };
const SAMPLES = [
  { file: "cat.jpg", title: "Chelsea", credit: "photo by Stéfan van der Walt, CC0" },
  { file: "dog.jpg", title: "A drawn dog", credit: "drawn by petseg" },
  { file: "coffee.jpg", title: "Coffee", credit: "photo by Rachel Michetti, CC0" },
];
const LARGEST_COMPARED = 1600; // side in pixels at which masks are compared
const WEBCAM_SIDE = 480;
const STEP = 0.02; // of the brush by an arrow key, as a share of the photo
const GONE = "the server does not answer; is `petseg serve` still running?";

const find = (selector) => document.querySelector(selector);

let about; // GET /api/models
let models; // of these by name
const state = {
  page: "try",
  view: "cutout", // cutout, compare or masks
  model: "", flip: false, matting: false, // what the server is asked for
  background: "", colour: "#56b4e9", picture: null, crop: false, // "", "colour" or "picture": of the finished cut-out
  tool: "slider", size: 0.06, zoom: 1, at: 35, // slider, erase or restore; its width as a share of the photo's
  samples: [], items: [], current: null, // each is of makeItem
  problem: "", stopped: false, status: "", copied: "", answer: "", // stopped: by a problem that is no photo's own
  camera: null, rate: null,
};
let working = new AbortController();

const makeItem = (blob, name) => ({ name, blob, url: URL.createObjectURL(blob), answers: new Map(), asked: new Map(), strokes: [], error: "" });

function change(changes) {
  Object.assign(state, changes);
  draw();
}

// --- asking ---

class Problem extends Error {} // in words that are meant for the visitor
class PhotoProblem extends Problem {} // which stays with the photo; any other may be gone at the next try

async function segment(blob, query, signal) {
  const asked = new URLSearchParams(Object.entries(query).flatMap(([name, value]) => [value].flat().map((each) => [name, each])));
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      answer = await fetch(`api/segment?${asked}`, { method: "POST", body: blob, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(GONE);
    }
    if (answer.ok) {
      try {
        const files = Object.fromEntries(await answer.formData());
        return { files, urls: {}, summary: JSON.parse(await files.json.text()) };
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Problem(GONE); // in the middle of its answer
      }
    }
    if (answer.status === 503 && attempt < 4) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") ?? 1)));
      continue;
    }
    const body = await answer.json().catch(() => ({}));
    const kind = [400, 413].includes(answer.status) ? PhotoProblem : Problem;
    throw new kind(body.detail ?? `The server answered ${answer.status}.`);
  }
}

const compared = () => ["unet", "segnet"].map((kind) => about.models.find((model) => model.kind === kind && model.best));

// What a view asks the server about a photo.
function queries(item, view = state.view) {
  const { model, flip, matting } = state;
  if (view === "compare") return compared().map(({ name }) => ({ model: name, flip, output: ["overlay", "mask", "json"] }));
  if (view === "cutout") return [{ model, flip, matting, raw: Boolean(item.raw), output: ["cutout", "json"] }];
  const trimap = models[model].classes.some((each) => each.role === "boundary") ? ["trimap"] : [];
  return [{ model, flip, output: ["mask", "classes", ...trimap, "overlay", "json"] }];
}

const answerTo = (item, query) => item.answers.get(JSON.stringify(query));
const done = (item) => queries(item).every((query) => answerTo(item, query));

// Asks what is not known yet; what is being asked for already is not asked twice.
function complete(item, view, signal) {
  const waits = queries(item, view).map((query) => {
    const key = JSON.stringify(query);
    let asked = item.asked.get(key);
    if (!asked || asked.signal?.aborted) {
      const mine = { signal, answer: segment(item.blob, query, signal).then((found) => item.answers.set(key, found)) };
      item.asked.set(key, (asked = mine));
      mine.answer.catch(() => item.asked.get(key) === mine && item.asked.delete(key));
    }
    return asked.answer;
  });
  return Promise.all(waits);
}

// --- photos ---

function forget(item) {
  if (state.samples.some((sample) => sample.item === item)) return;
  const urls = [...item.answers.values()].flatMap((answer) => Object.values(answer.urls));
  [item.url, ...urls].forEach((url) => URL.revokeObjectURL(url));
}

function take(items) {
  stopWebcam();
  state.items.filter((item) => !items.includes(item)).forEach(forget);
  change({ items, current: items[0] ?? null, problem: "", stopped: false, zoom: 1, tool: "slider" });
  work();
}

function takeFiles(files) {
  if (state.page !== "try") location.hash = "#try"; // photos may be dropped and pasted anywhere
  take([...files].map((file, place) => makeItem(file, file.name || `photo-${place + 1}.png`)));
}

// Computes what the view lacks, the photo that is shown first.
async function work() {
  working.abort();
  working = new AbortController();
  const { signal } = working;
  const { current, items } = state;
  change(state.stopped ? { stopped: false, problem: "" } : {});
  for (const item of [...items].sort((one, other) => (other === current) - (one === current))) {
    if (item.error) continue;
    try {
      if (!item.blob.size) throw new PhotoProblem("the file is empty");
      if (item.blob.size > about.upload_bytes)
        throw new PhotoProblem(`it has ${megabytes(item.blob.size)}; at most ${megabytes(about.upload_bytes)} are taken`);
      await complete(item, state.view, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      if (!(error instanceof PhotoProblem)) return change({ problem: items.length === 1 ? `${item.name}: ${error.message}` : error.message, stopped: true });
      item.error = error.message;
    }
    if (signal.aborted) return;
    if (item === state.current && item.error) state.current = items.find((each) => !each.error) ?? item;
    draw();
  }
  const failed = items.filter((item) => item.error);
  if (items.length === 1 && failed.length) change({ problem: `${items[0].name}: ${items[0].error}` });
  else if (failed.length) change({ problem: `${failed.length} of ${items.length} photos could not be used; the list below says why.` });
  if (items.length) change({ status: items.length === 1 ? "Done" : `${items.length - failed.length} of ${items.length} photos are done` });
}

// --- webcam ---

async function startWebcam() {
  take([]);
  if (!navigator.mediaDevices) return change({ problem: "The browser lends its webcam to pages on localhost and over https alone." });
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    const why = { NotAllowedError: "it was not allowed", NotFoundError: "there is none" }[error.name] ?? error.message;
    return change({ problem: `The webcam cannot be used: ${why}.` });
  }
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: stream });
  await video.play();
  const mine = { stream };
  change({ camera: mine, status: "The webcam runs" });
  const ends = []; // when the last frames were done
  const canvas = new OffscreenCanvas(1, 1);
  while (state.camera === mine) {
    const scale = Math.min(1, WEBCAM_SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const item = makeItem(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 }), "webcam.jpg");
    try {
      await complete(item, state.view, working.signal);
    } catch (error) {
      if (state.camera !== mine) return;
      if (!(error instanceof Problem)) throw error;
      stopWebcam();
      return change({ problem: error.message });
    }
    if (state.camera !== mine) return forget(item);
    if (!done(item)) continue; // the view was changed meanwhile
    state.items.forEach(forget);
    ends.push(performance.now());
    if (ends.length > 20) ends.shift();
    const rate = ends.length > 1 ? (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]) : null;
    change({ items: [item], current: item, rate });
  }
}

// The last frame stays, as a photo.
function stopWebcam() {
  if (!state.camera) return;
  state.camera.stream.getTracks().forEach((track) => track.stop());
  change({ camera: null, rate: null });
}

// --- results ---

const look = () => ({ crop: state.crop, background: state.background === "colour" ? state.colour : state.background && state.picture });

// [model, output, blob] of all files that the view shows of a photo.
async function files(item) {
  if (state.view === "cutout") {
    const { model } = queries(item)[0];
    return [[model, "cutout", await finished(item, answerTo(item, queries(item)[0]).files.cutout, look())]];
  }
  return queries(item).flatMap((query) => query.output.map((output) => [query.model, output, answerTo(item, query).files[output]]));
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Says why where a file cannot be made.
const saving = (make) => async () => {
  try {
    await make();
  } catch (error) {
    change({ problem: `The browser cannot make this file: ${error.message}` });
  }
};

const saveAll = saving(async () => {
  const items = state.items.filter(done);
  const stems = uniqueStems(items.map((item) => item.name));
  const named = items.map(async (item, place) =>
    (await files(item)).map(([model, output, input]) => ({ name: fileName(stems[place], model, output), input })),
  );
  save(await downloadZip((await Promise.all(named)).flat()).blob(), "petseg.zip");
});

const saveCutout = saving(async () => {
  const [[model, output, blob]] = await files(state.current);
  save(blob, fileName(stem(state.current.name), model, output));
});

async function copy(what, blob) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    change({ copied: what, status: `${what} copied` });
    setTimeout(() => change({ copied: "" }), 1500);
  } catch {
    change({ problem: "The browser did not allow copying; download the file instead." });
  }
}

async function agree(item, masks) {
  const [first, second] = await Promise.all(
    masks.map(async (blob) => {
      const bitmap = await createImageBitmap(blob);
      const scale = Math.min(1, LARGEST_COMPARED / Math.max(bitmap.width, bitmap.height));
      const context = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale)).getContext("2d");
      context.imageSmoothingEnabled = false; // a mask holds 0 and 255 only
      context.drawImage(bitmap, 0, 0, context.canvas.width, context.canvas.height);
      return context.getImageData(0, 0, context.canvas.width, context.canvas.height).data;
    }),
  );
  return `The two agree on ${(100 * agreement(first, second)).toFixed(1)} % of the pixels.`;
}

// --- the brush and the slider ---

const placeOf = (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  return [clamped((event.clientX - box.left) / box.width), clamped((event.clientY - box.top) / box.height)];
};

let stroke = null; // while it is drawn
let pen = [0.5, 0.5]; // where the keyboard's brush is

function point([x, y]) {
  pen = [x, y];
  Object.assign(find(".ring").style, { left: `${100 * x}%`, top: `${100 * y}%` });
}

function extend(place) {
  stroke.points.push(place);
  drawStroke(find("canvas").getContext("2d"), { ...stroke, points: stroke.points.slice(-2) }, state.current.photo);
}

function startStroke(place) {
  stroke = { restore: state.tool === "restore", size: state.size, points: [] };
  extend(place);
}

function endStroke() {
  if (!stroke) return;
  state.current.strokes = [...state.current.strokes, stroke];
  stroke = null;
  draw();
}

function press(event) {
  event.currentTarget.setPointerCapture(event.pointerId);
  if (state.tool === "slider") return change({ at: 100 * placeOf(event)[0] });
  event.preventDefault();
  startStroke(placeOf(event));
}

function move(event) {
  if (state.tool !== "slider") point(placeOf(event));
  if (!event.buttons) return;
  if (stroke) extend(placeOf(event));
  else if (state.tool === "slider") change({ at: 100 * placeOf(event)[0] });
}

function steer(event) {
  const steps = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP], " ": [0, 0] };
  const step = steps[event.key];
  if (state.tool === "slider" || !step) return;
  event.preventDefault();
  point(pen.map((at, axis) => clamped(at + step[axis])));
  if (event.key !== " ") return;
  startStroke(pen);
  endStroke();
}

async function pick(tool) {
  if (tool === "restore") state.current.photo ??= await decoded(state.current.blob, LARGEST_SHOWN);
  change({ tool });
}

// --- what it looks like ---

const unanswered = (item) => !item.error && !state.stopped;
const busy = (item) => unanswered(item) && !done(item);

// A photo below a result that the slider uncovers.
function stage(item, { waits, result, label, brush = false }) {
  const fit = ({ target }) => {
    item.ratio = target.naturalWidth / target.naturalHeight;
    draw();
  };
  return html`
    <div class="stage ${item.unseen ? "alone" : ""} ${brush ? `brush ${state.tool}` : ""}" style="--ratio: ${item.ratio ?? 1.5}" aria-busy=${waits}
      tabindex=${brush ? 0 : nothing} role=${brush ? "application" : nothing}
      aria-label=${brush ? "Brush: the arrow keys move it, space paints" : nothing}
      @pointerdown=${press} @pointermove=${move} @pointerup=${endStroke} @pointercancel=${endStroke} @keydown=${steer}>
      <img class="photo" alt="The photo" src=${item.url} draggable="false" @load=${fit} @error=${() => ((item.unseen = true), draw())}>
      ${result}
      ${brush ? html`<span class="ring" style="width: ${100 * state.size}%; left: ${100 * pen[0]}%; top: ${100 * pen[1]}%"></span>` : html`
        <div class="line" aria-hidden="true"></div>
        <input type="range" min="0" max="100" step="1" .value=${String(Math.round(state.at))} aria-label="${label}: how much of the photo is shown"
          @input=${(event) => change({ at: Number(event.target.value) })}>`}
      <div class="wait" aria-hidden="true"><span>Working …</span></div>
    </div>`;
}

const urlOf = (answer, output) => (answer.urls[output] ??= URL.createObjectURL(answer.files[output]));

function picture(item, query, output, title) {
  const answer = answerTo(item, query);
  const fit = ({ target }) => {
    item.ratio ??= target.naturalWidth / target.naturalHeight;
    draw();
  };
  const result = answer && html`<div class="result"><img src=${urlOf(answer, output)} alt="${title}: ${output}" draggable="false" @load=${fit}></div>`;
  return stage(item, { waits: !answer && unanswered(item), result, label: title });
}

function facts(answer, model) {
  const { summary } = answer ?? {};
  const rows = {
    Sees: summary && sees(summary, model.classes),
    Confidence: summary?.confidence && percent(summary.confidence),
    Covers: summary && percent(summary.foreground_share),
    Network: summary && milliseconds(summary.milliseconds),
  };
  return html`<dl class="facts">
    ${Object.entries(rows).map(([name, text]) => html`<div><dt>${name}</dt><dd class=${name.toLowerCase()}>${text || "–"}</dd></div>`)}
  </dl>
  ${summary?.notes.length ? html`<p class="soft small notes">${summary.notes.join("; ")}</p>` : nothing}`;
}

const legend = (classes) => html`<ul class="legend" aria-label="Colours">
  ${classes.map(({ name, colour }) => html`<li><span class="swatch" style="background: ${colour}"></span>${name}</li>`)}
</ul>`;

const copying = (what, blob) => html`<button type="button" class="copy" ?disabled=${!blob} @click=${async () => copy(what, await blob())}>
  ${state.copied === what ? `${what} copied` : `Copy ${what.toLowerCase()}`}</button>`;

const choice = (group, value, title, onpick) => html`<label><input type="radio" name=${group} value=${value}
  .checked=${state[group] === value} @change=${onpick ?? (() => change({ [group]: value }))}><span>${title}</span></label>`;

const tick = (name, title, hint, { off = false, then = draw } = {}) => html`<label class="tick"><input type="checkbox" name=${name}
  .checked=${state[name]} ?disabled=${off} @change=${(event) => ((state[name] = event.target.checked), then())}>
  <span>${title} <small>${hint}</small></span></label>`;

const modelChoice = () => html`<label class="field">Model
  <select name="model" @change=${(event) => ((state.model = event.target.value), work())}>
    ${about.models.map(({ name, miou }) => html`<option value=${name} ?selected=${name === state.model}>
      ${name}${miou === null ? "" : `, ${(100 * miou).toFixed(1)} % mIoU`}</option>`)}
  </select></label>`;

const server = () => [modelChoice(), tick("flip", "Mirror too", "averages with the mirrored photo", { then: work })];

function cutoutView(item) {
  const [query] = queries(item);
  const answer = answerTo(item, query);
  const cutout = answer?.files.cutout ?? item.last;
  const none = answer && !answer.summary.foreground && !item.strokes.length;
  const brush = state.tool !== "slider" && Boolean(answer);
  const backdrop = { "": "", colour: `background: ${state.colour}`, picture: `background: center / cover url(${state.picture?.url})` }[state.background];
  const anyway = () => ((item.raw = true), work());
  const result = html`<div class="result checks" ?hidden=${!cutout || (none && !brush)} style=${backdrop}>
      <canvas role="img" aria-label="The cut-out"></canvas>
      ${state.crop && item.cut ? html`<div class="crop" style="inset: ${item.cut.map((share) => `${100 * share}%`).join(" ")}"></div>` : nothing}
    </div>`;
  const blank = !answer || none;
  return html`<div class="bench">
    <div>
      <div class="window" style="--zoom: ${state.zoom}; --ratio: ${item.ratio ?? 1.5}" tabindex=${state.zoom > 1 ? 0 : nothing}>
        ${stage(item, { waits: !answer && unanswered(item), result, label: "Cut-out", brush })}
      </div>
      ${none ? html`<div class="none" role="status"><b>${named(models[state.model].classes) ? `No ${named(models[state.model].classes)} here` : "Nothing to cut out here"}</b>
        <span>${item.raw ? "The model marks no pixel at all." : `${state.model} sees ${sees(answer.summary, models[state.model].classes)}.`}
        You can restore parts with the brush.</span>
        ${item.raw ? nothing : html`<button type="button" @click=${anyway}>Cut out anyway</button>`}</div>` : nothing}
      ${facts(answer, models[state.model])}
    </div>
    <form class="panel" aria-label="Settings" @submit=${(event) => event.preventDefault()}>
      <div class="actions">
        <button type="button" class="main" id="download" ?disabled=${blank} @click=${saveCutout}>Download cut-out</button>
        ${copying("Cut-out", blank ? null : async () => (await files(item))[0][2])}
      </div>
      <fieldset><legend>Background</legend><div class="group">
        ${choice("background", "", "None")}
        ${choice("background", "colour", "Colour")}
        <input type="color" aria-label="Colour of the background" .value=${state.colour} @input=${(event) => change({ colour: event.target.value, background: "colour" })}>
        <label class="button"><input type="file" id="picture" class="hidden" accept="image/*" @change=${choosePicture}>Image …</label>
      </div>${tick("crop", "Crop", "to what is seen")}</fieldset>
      <fieldset><legend>Touch up</legend><div class="group">
        ${choice("tool", "slider", "Slider")}
        ${choice("tool", "erase", "Erase", () => pick("erase"))}
        ${item.unseen ? nothing : choice("tool", "restore", "Restore", () => pick("restore"))}
        <button type="button" id="undo" ?disabled=${!item.strokes.length} @click=${() => ((item.strokes = item.strokes.slice(0, -1)), draw())}>Undo</button>
      </div>
      ${brush ? html`<label class="field">Brush <input type="range" min="0.01" max="0.2" step="0.01" .value=${String(state.size)}
        @input=${(event) => change({ size: Number(event.target.value) })}></label>` : nothing}
      <div class="group" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom out" ?disabled=${state.zoom <= 1} @click=${() => change({ zoom: state.zoom / 1.5 < 1.1 ? 1 : state.zoom / 1.5 })}>−</button>
        <output>${Math.round(100 * state.zoom)} %</output>
        <button type="button" aria-label="Zoom in" ?disabled=${state.zoom > 7} @click=${() => change({ zoom: state.zoom * 1.5 })}>+</button>
      </div></fieldset>
      <fieldset><legend>How it is cut</legend>
        ${server()}
        ${tick("matting", "Finer hair", about.matting ? "matting, takes longer" : "needs petseg[matting]", { off: !about.matting, then: work })}
      </fieldset>
    </form>
  </div>`;
}

async function choosePicture({ target }) {
  const [file] = target.files;
  target.value = ""; // the same file may be chosen again
  if (!file) return;
  try {
    await decoded(file);
    change({ picture: Object.assign(file, { url: URL.createObjectURL(file) }), background: "picture", problem: "" });
  } catch {
    change({ problem: `${file.name}: the browser cannot read this image; take a JPEG or PNG for the background.` });
  }
}

function compareView(item) {
  const asked = queries(item, "compare");
  const answers = asked.map((query) => answerTo(item, query));
  if (answers.every(Boolean) && item.agreed?.[0] !== answers[0]) {
    item.agreed = [answers[0], ""];
    agree(item, answers.map((answer) => answer.files.mask)).then((words) => ((item.agreed = [answers[0], words]), draw()));
  }
  return html`<div class="pair">
    ${asked.map((query, place) => {
      const model = models[query.model];
      const score = model.miou === null ? "" : `, ${(100 * model.miou).toFixed(1)} % mIoU`;
      return html`<article aria-label=${model.title}>
        <h2>${model.title} <small>${model.name}${score}</small></h2>
        ${picture(item, query, "overlay", model.title)}
        ${facts(answers[place], model)}
        <div class="downloads">${download(item, query, "overlay")} ${download(item, query, "mask")}</div>
      </article>`;
    })}
  </div>
  <p class="agreement" id="agreement">${answers.every(Boolean) ? item.agreed[1] : ""}</p>
  ${legend(models[asked[0].model].classes.filter((each) => each.role !== "background"))}`;
}

function download(item, query, output) {
  const answer = answerTo(item, query);
  return html`<a class="button" data-output=${output} href=${answer ? urlOf(answer, output) : nothing} aria-label="Download ${models[query.model].title}'s ${TITLES[output]}"
    download=${fileName(stem(item.name), query.model, output)}>↓ ${TITLES[output]}</a>`;
}

function masksView(item) {
  const [query] = queries(item);
  const answer = answerTo(item, query);
  const model = models[query.model];
  const trimap = query.output.includes("trimap");
  return html`<div class="pair">
    <article aria-label="Mask"><h2>Mask</h2>${picture(item, query, "mask", "Mask")}</article>
    <article aria-label="Classes"><h2>${trimap ? "Border and classes" : "Classes"}</h2>${picture(item, query, "classes", "Classes")}${legend(model.classes)}</article>
  </div>
  ${facts(answer, model)}
  <div class="actions" role="group" aria-label="Files">
    ${query.output.map((output) => download(item, query, output))} ${copying("Mask", answer && (() => answer.files.mask))}
  </div>
  <form class="row" @submit=${(event) => event.preventDefault()}>${server()}</form>`;
}

function list() {
  const word = (item) => item.error || (done(item) ? "done" : "waits");
  return html`<section id="several" aria-labelledby="several-title">
    <div class="bar"><h2 id="several-title">Photos</h2>
      <button type="button" id="zip" ?disabled=${!state.items.some(done) || state.items.some(busy)} @click=${saveAll}>Download all as zip</button></div>
    <ol id="list">${state.items.map((item) => html`<li>
      <button type="button" aria-current=${item === state.current} @click=${() => change({ current: item, tool: "slider" })}>
        <img src=${item.url} alt="" @error=${(event) => (event.target.style.visibility = "hidden")}>
        <span>${item.name}</span><span class=${item.error ? "failed" : "soft"}>${word(item)}</span>
      </button></li>`)}</ol>
  </section>`;
}

function tryPage() {
  const { current, items } = state;
  const views = { cutout: "Cut-out", ...(about.shipped ? { compare: "U-Net and SegNet" } : {}), masks: "Mask and border" };
  const shown = { cutout: cutoutView, compare: compareView, masks: masksView }[state.view];
  return html`<section aria-labelledby="title">
    <h1 id="title" tabindex="-1">${title()}</h1>
    <p class="soft lead">Your photo goes to the petseg that serves this page, to nobody else, and is not kept.</p>
    <div class="ways" id="drop">
      <input type="file" id="file" class="hidden" accept="image/*,.tif,.tiff,.avif" multiple @change=${({ target }) => {
        if (target.files.length) takeFiles(target.files);
        target.value = "";
      }}>
      <label for="file" class="button main">Choose photos</label>
      <button type="button" id="webcam" aria-pressed=${Boolean(state.camera)} @click=${() => (state.camera ? stopWebcam() : startWebcam())}>${state.camera ? "Stop webcam" : "Webcam"}</button>
      <span class="soft small">or drop or paste some</span>
      ${state.samples.length ? html`<div class="samples" role="group" aria-label="Samples">${state.samples.map(({ item, title, credit, file }) => html`
        <button type="button" data-file=${file} title="${title}: ${credit}" aria-pressed=${item === current} @click=${() => take([item])}>
          <img src=${item.url} alt=""><span>${title}</span></button>`)}</div>` : nothing}
    </div>
    ${current && !(current.error && items.length === 1) ? html`
      <div class="bar">
        <fieldset class="group views"><legend class="hidden">View</legend>
          ${Object.entries(views).map(([view, title]) => choice("view", view, title, () => ((state.view = view), (state.tool = "slider"), state.camera ? draw() : work())))}
        </fieldset>
        ${state.camera ? html`<p class="live"><b id="rate">${state.rate?.toFixed(1) ?? "–"}</b> frames a second</p>` : nothing}
      </div>
      <div id="results">${shown(current)}</div>` : nothing}
    ${items.length > 1 ? list() : nothing}
    ${state.samples.length ? html`<p class="soft small credits">${state.samples.map(({ title, credit }) => `${title}: ${credit}`).join("; ")}.</p>` : nothing}
  </section>`;
}

const classNames = () => objects(about.models.flatMap((model) => model.classes));
const title = () => {
  const unique = [...new Set(classNames())];
  return about.shipped ? `Cut out your ${unique.join(" or ")}` : `Cut out: ${unique.join(", ")}`;
};

function comparisonPage() {
  const item = state.samples[0].item;
  return html`<section aria-labelledby="title">
    <h1 id="title" tabindex="-1">U-Net or SegNet?</h1>
    <div id="answer" aria-busy=${!state.answer} .innerHTML=${state.answer || "<p class=soft>Drawing …</p>"}></div>
    <h2>The same photo, by both</h2>
    ${compareView(item)}
    <p class="soft small">The shipped models <code>unet_base</code> and <code>segnet_base</code>, taught by the default model; Chelsea, ${SAMPLES[0].credit}. <code>petseg report results/study</code> in the repository draws every figure of the study.</p>
  </section>`;
}

async function startComparison() {
  try {
    state.answer ||= await (await fetch("answer")).text();
    draw();
    await complete(state.samples[0].item, "compare");
    draw();
  } catch {
    change({ problem: GONE });
  }
}

function apiPage() {
  const from = `${location.origin}/api`;
  const photo = about.shipped ? "cat.jpg" : "photo.jpg";
  const rows = {
    output: "mask, overlay, cutout, classes, trimap or json; repeat it for several in one multipart answer",
    model: [...new Set(about.models.flatMap(({ name, kind }) => (kind ? [kind, name] : [name])))].join(", "),
    foreground: `classes to cut out, repeated: ${[...new Set(about.models.flatMap(({ classes }) => classes.map(({ name }) => name)))].join(", ")}`,
    "flip, scales": "true averages with the mirrored photo; scales=1&scales=1.25 averages over sizes, at most four of .25 to 2",
    zoom: "false looks at small objects once; otherwise shipped models look a second time, closer",
    matting: "true gives cut-outs finer hair",
    raw: "true keeps small pieces and holes, and what is hardly an object",
    limits: `${megabytes(about.upload_bytes)} and ${about.pixels / 1e6} megapixels a photo`,
    errors: "400 not an image, 413 too large, 415 wrong content type, 422 wrong parameter, 503 busy (with Retry-After); always {\"detail\": \"a sentence\"}",
  };
  return html`<section aria-labelledby="title">
    <h1 id="title" tabindex="-1">From a script</h1>
    <p class="soft lead">The same models answer over HTTP. <a href="openapi.json">openapi.json</a> describes it all.</p>
    <pre tabindex="0" aria-label="Commands" id="commands">${[
      `curl -F image=@${photo} '${from}/segment?output=cutout' > cutout.png`,
      `curl -F image=@${photo} '${from}/segment?model=${about.models.at(-1).name}&output=json'`,
      `curl -H 'Content-Type: image/jpeg' --data-binary @${photo} '${from}/segment' > mask.png`,
      `curl ${from}/models`,
    ].join("\n")}</pre>
    <dl class="pairs">${Object.entries(rows).map(([name, words]) => html`<dt><code>${name}</code></dt><dd>${words}</dd>`)}</dl>
  </section>`;
}

function draw() {
  const shown = { try: tryPage, comparison: comparisonPage, api: apiPage }[state.page];
  const pages = Object.entries(PAGES).filter(([name]) => name !== "comparison" || about?.shipped);
  render(html`
    <header><a class="name" href="#try">petseg</a><nav aria-label="Pages">
      ${pages.map(([name, title]) => html`<a href="#${name}" aria-current=${name === state.page ? "page" : nothing}>${title}</a>`)}
    </nav></header>
    <main id="main" style="--at: ${state.at}%">
      <p class="problem" id="problem" role="alert" ?hidden=${!state.problem}>${state.problem}</p>
      ${state.stopped ? html`<button type="button" id="again" @click=${work}>Try again</button>` : nothing}
      <p class="hidden" id="status" role="status">${state.status}</p>
      ${about ? shown() : nothing}
    </main>`, find("#app"));
  paint();
}

// Draws the cut-out on the canvas of the view, where it is not there yet.
async function paint() {
  const [canvas, item] = [find("canvas"), state.current];
  const answer = canvas && item && answerTo(item, queries(item, "cutout")[0]);
  if (!answer || (canvas.answer === answer && canvas.strokes === item.strokes)) return;
  const { strokes } = Object.assign(canvas, { answer, strokes: item.strokes });
  item.ratio ??= answer.summary.width / answer.summary.height;
  const made = await shown(item, answer.files.cutout);
  if (canvas.answer !== answer || canvas.strokes !== strokes) return; // another photo came meanwhile
  Object.assign(canvas, { width: made.canvas.width, height: made.canvas.height });
  canvas.getContext("2d").drawImage(made.canvas, 0, 0);
  canvas.dataset.painted = strokes.length;
  Object.assign(item, { cut: made.cut, last: answer.files.cutout });
  draw();
}

// --- start ---

function turn(focus) {
  const page = Object.keys(PAGES).find((name) => location.hash === `#${name}` && (name !== "comparison" || about.shipped)) ?? "try";
  if (page !== "try") stopWebcam();
  change({ page, problem: "" });
  if (page === "comparison") startComparison();
  if (focus) find("#title").focus();
}

addEventListener("hashchange", () => location.hash !== "#main" && turn(true));
for (const [event, over] of Object.entries({ dragover: true, dragleave: false, drop: false }))
  addEventListener(event, (dragged) => (dragged.preventDefault(), find("#drop")?.classList.toggle("over", over)));
addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) takeFiles(event.dataTransfer.files);
  else change({ problem: "That was no file. Drop a photo from a folder, or copy an image and paste it here." });
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) takeFiles(event.clipboardData.files);
  else change({ problem: "The clipboard holds no image." });
});

async function start() {
  try {
    about = await (await fetch("api/models")).json();
    models = Object.fromEntries(about.models.map((model) => [model.name, model]));
    const samples = about.shipped ? SAMPLES : [];
    state.samples = await Promise.all(samples.map(async (sample) => ({ ...sample, item: makeItem(await (await fetch(sample.file)).blob(), sample.file) })));
  } catch {
    return change({ problem: GONE });
  }
  state.model = about.default;
  document.title = `petseg: ${title().toLowerCase()}`;
  turn(false);
  document.body.dataset.ready = "true";
  if (state.page !== "try" || !state.samples.length || state.items.length) return;
  change({ current: state.samples[0].item, items: [state.samples[0].item] });
  await work();
  for (const { item } of state.samples) await complete(item, "cutout").catch(() => {}); // so that the others respond at once
}

start();
