// The page of `petseg serve`: sends a photo to /api/segment, once a model, and shows what comes back.

const TITLES = { mask: "Mask", overlay: "Overlay", cutout: "Cut-out", classes: "Classes", trimap: "Trimap", json: "JSON" };
const OUTPUTS = Object.keys(TITLES);
const LARGEST_COMPARED = 1600; // side in pixels at which masks are compared
const WEBCAM_SIDE = 480;
const GONE = "the server does not answer; is `petseg serve` still running?";

const find = (id) => document.getElementById(id);
const view = () => document.querySelector("input[name=view]:checked").value;

let about; // GET /api/models
let offered = []; // one a model: {model, title, root, photo, result, urls}
let sides = []; // those of them that are shown, the default model first
let items = []; // one a photo: {name, blob, url, answers: {model: {json, mask, ...}}, error}
let current = null;
let working = new AbortController();
let camera = null;

// --- asking ---

class Problem extends Error {} // in words that are meant for the visitor

async function segment(blob, model, outputs, signal) {
  const query = new URLSearchParams([["model", model], ...outputs.map((output) => ["output", output])]);
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      answer = await fetch(`api/segment?${query}`, { method: "POST", body: blob, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(GONE);
    }
    if (answer.ok) {
      const parts = outputs.length > 1 ? await answer.formData() : new Map([[outputs[0], await answer.blob()]]);
      const files = Object.fromEntries(outputs.map((output) => [output, parts.get(output)]));
      return { ...files, summary: files.json && JSON.parse(await files.json.text()) };
    }
    if (answer.status === 503 && attempt < 4) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") ?? 1)));
      continue;
    }
    const body = await answer.json().catch(() => ({}));
    throw new Problem(body.detail ?? `The server answered ${answer.status}.`);
  }
}

// --- a photo, or several ---

function take(files) {
  stopWebcam();
  working.abort();
  working = new AbortController();
  items.forEach((item) => URL.revokeObjectURL(item.url));
  items = [...files].map((blob, place) => ({ name: blob.name || `photo-${place + 1}.png`, blob, answers: {}, error: null }));
  current = null;
  for (const side of offered) {
    side.answer = null;
    facts(side);
    links(side, null);
  }
  complain("");
  find("several").hidden = items.length < 2;
  find("zip").disabled = true;
  items.forEach((item) => (item.url = URL.createObjectURL(item.blob)));
  drawList();
  if (items.length) work(working.signal);
}

const done = (item) => sides.every((side) => item.answers[side.model]);

async function work(signal) {
  for (const item of items) {
    if (current === null || current.error) show(item);
    if (item.error) continue;
    try {
      if (!item.blob.size) throw new Problem("the file is empty");
      if (item.blob.size > about.upload_bytes)
        throw new Problem(`it has ${megabytes(item.blob.size)}; at most ${megabytes(about.upload_bytes)} are taken`);
      const missing = sides.filter((side) => !item.answers[side.model]);
      const answers = await Promise.all(missing.map((side) => segment(item.blob, side.model, side.outputs, signal)));
      missing.forEach((side, place) => (item.answers[side.model] = answers[place]));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      item.error = error.message;
    }
    if (signal.aborted) return;
    if (item === current) show(item);
    drawList();
  }
  if (items.length > 1) {
    const good = items.filter(done).length;
    find("zip").disabled = good === 0;
    say(`${good} of ${items.length} photos are done`);
    const failed = items.length - good;
    if (failed) complain(`${failed} of ${items.length} photos could not be used; the list below says why.`);
  }
}

function show(item) {
  current = item;
  find("results").hidden = Boolean(item.error);
  if (item.error && items.length === 1) complain(`${item.name}: ${item.error}`);
  for (const side of sides) {
    side.answer = item.answers[side.model] ?? null;
    side.root.setAttribute("aria-busy", !side.answer && !item.error);
    side.photo.src = item.url;
    facts(side);
    links(side, item);
  }
  drawList();
  render().then(() => {
    if (done(item) && items.length === 1) say(find("agreement").textContent || "Done");
  });
}

function facts(side) {
  const summary = side.answer?.summary;
  const set = (name, text) => (side.root.querySelector(`.${name}`).textContent = text);
  const likeliest = summary?.foreground_class;
  const told = (summary?.boxes ?? []).map((box) => box.foreground_class).filter(Boolean); // a narrow region has none
  const regions = [...new Map(told.map((each) => [each.name, each]).reverse()).values()].reverse();
  const seen = regions.length > 1 ? regions : [likeliest];
  const words = (each) => `${each.name}, ${percent(each.probability)}`;
  set("sees", !summary ? "–" : !summary.foreground ? nothing(side, summary) : likeliest ? seen.map(words).join("; ") : named(side.classes) || "foreground");
  set("confidence", summary?.confidence == null ? "–" : percent(summary.confidence));
  set("covers", summary ? percent(summary.foreground_share) : "–");
  set("time", summary ? `${summary.milliseconds.toFixed(summary.milliseconds < 10 ? 1 : 0)} ms` : "–");
}

const objects = (classes) => classes.filter((each) => each.role === "foreground").map((each) => each.name);
const named = (classes) => (objects(classes).length < 4 ? objects(classes).join(" or ") : "");

function nothing(side, summary) {
  const words = named(side.classes) ? `no ${named(side.classes)}` : "nothing";
  return summary.presence === null ? words : `${words}, ${percent(1 - summary.presence)}`;
}

function links(side, item) {
  side.urls.forEach((url) => URL.revokeObjectURL(url));
  side.urls = [];
  for (const link of side.root.querySelectorAll(".downloads a")) {
    const blob = side.answer?.[link.dataset.output];
    if (!blob) {
      link.removeAttribute("href");
      continue;
    }
    side.urls.push((link.href = URL.createObjectURL(blob)));
    link.download = fileName(stem(item.name), side, link.dataset.output);
  }
  side.root.querySelector("button.copy").disabled = !side.answer;
}

const stem = (name) => name.replace(/\.[^.]+$/, "");
const fileName = (name, side, output) =>
  `${name}.${side.model}.${output === "json" ? "json" : `${output}.png`}`;

async function render() {
  const kind = view();
  find("pair").dataset.view = kind;
  drawLegend(kind);
  const shown = current;
  await Promise.all(
    sides.map(async (side) => {
      if (!side.answer) return side.result.removeAttribute("src");
      const blob = side.answer[kind];
      URL.revokeObjectURL(side.shown);
      side.shown = URL.createObjectURL(blob);
      side.result.src = side.shown;
      side.result.alt = `${side.title}: ${kind === "cutout" ? "cut-out" : kind}`;
    }),
  );
  const text = await compared();
  if (shown === current) find("agreement").textContent = text;
}

async function compared() {
  if (!sides.every((side) => side.answer?.mask)) return "";
  const [first, ...others] = sides;
  if (!sides.some((side) => side.answer.summary.foreground))
    return others.length ? "None of the models sees anything to cut out." : "The model sees nothing to cut out.";
  const shares = await Promise.all(others.map((side) => agreement([first, side].map(({ answer }) => answer.mask))));
  const words = others.map((side, place) => `${side.model} ${(100 * shares[place]).toFixed(1)} %`);
  return words.length ? `Pixels that agree with ${first.model}: ${words.join(", ")}.` : "";
}

function drawLegend(kind) {
  const shown = (each) => kind === "classes" || (kind === "overlay" && each.role !== "background");
  const classes = new Map(sides.flatMap((side) => side.classes.filter(shown)).map((each) => [each.name, each]));
  find("legend").replaceChildren(
    ...[...classes.values()].map(({ name, colour }) => {
      const entry = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = colour;
      entry.append(swatch, name);
      return entry;
    }),
  );
}

async function agreement(masks) {
  const [first, second] = await Promise.all(
    masks.map(async (blob) => {
      const bitmap = await createImageBitmap(blob);
      const scale = Math.min(1, LARGEST_COMPARED / Math.max(bitmap.width, bitmap.height));
      const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.imageSmoothingEnabled = false; // a mask holds 0 and 255 only
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      return context.getImageData(0, 0, canvas.width, canvas.height).data;
    }),
  );
  let same = 0;
  for (let at = 0; at < first.length; at += 4) same += first[at] === second[at];
  return (4 * same) / first.length;
}

const percent = (share) => `${Math.round(100 * share)} %`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// --- webcam ---

async function startWebcam() {
  take([]);
  if (!navigator.mediaDevices) return complain("The browser lends its webcam to pages on localhost and over https alone.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    const why = { NotAllowedError: "it was not allowed", NotFoundError: "there is none" }[error.name] ?? error.message;
    return complain(`The webcam cannot be used: ${why}.`);
  }
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  await video.play();
  camera = { stream, video };
  find("webcam").setAttribute("aria-pressed", "true");
  find("webcam").textContent = "Stop webcam";
  find("results").hidden = find("live").hidden = false;
  say("The webcam runs");
  const mine = camera;
  const ends = []; // when the last frames were done
  const canvas = new OffscreenCanvas(1, 1);
  while (camera === mine) {
    const scale = Math.min(1, WEBCAM_SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
    const kind = view();
    const outputs = [...new Set(["mask", "json", kind])];
    const asked = sides;
    let answers;
    try {
      answers = await Promise.all(asked.map((side) => segment(blob, side.model, outputs, working.signal)));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      stopWebcam();
      return complain(error.message);
    }
    if (camera !== mine) return;
    if (view() !== kind || sides !== asked) continue;
    const url = URL.createObjectURL(blob);
    URL.revokeObjectURL(current?.url);
    current = { name: "webcam.jpg", blob, url, answers: {} };
    sides.forEach((side, place) => {
      current.answers[side.model] = side.answer = answers[place];
      side.photo.src = url;
      facts(side);
    });
    await render();
    ends.push(performance.now());
    if (ends.length > 20) ends.shift();
    if (ends.length > 1) {
      find("rate").textContent = ((1000 * (ends.length - 1)) / (ends.at(-1) - ends[0])).toFixed(1);
    }
  }
}

function stopWebcam() {
  if (!camera) return;
  camera.stream.getTracks().forEach((track) => track.stop());
  camera = null;
  find("webcam").setAttribute("aria-pressed", "false");
  find("webcam").textContent = "Webcam";
  find("live").hidden = true;
  find("rate").textContent = "–";
  if (current) {
    items = [current]; // the last frame stays, with all its files
    current.answers = {};
    again();
  }
}

// Computes what is shown and not known yet.
function again() {
  find("zip").disabled = true;
  show(current);
  working.abort();
  working = new AbortController();
  work(working.signal);
}

// --- zip ---

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

// Returns a zip of [name, blob] pairs as a blob, stored as they are: PNGs are compressed already.
//
// Why no library: browsers have none (CompressionStream writes no archives), fflate would be 30 kB of minified code to
// ship and renew for these 40 lines, and a zip made by the server would need every result to be sent back to it.
async function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, blob] of files) {
    const title = new TextEncoder().encode(name);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const fields = new DataView(new ArrayBuffer(26));
    fields.setUint16(0, 20, true); // version that unpacks it
    fields.setUint16(2, 0x0800, true); // names are UTF-8
    fields.setUint16(8, 0x21, true); // 1 January 1980: no clock is read
    fields.setUint32(10, crc32(bytes), true);
    fields.setUint32(14, bytes.length, true);
    fields.setUint32(18, bytes.length, true);
    fields.setUint16(22, title.length, true);
    const entry = new DataView(new ArrayBuffer(46));
    entry.setUint32(0, 0x02014b50, true);
    entry.setUint16(4, 20, true);
    new Uint8Array(entry.buffer).set(new Uint8Array(fields.buffer), 6);
    entry.setUint32(42, offset, true);
    directory.push(entry.buffer, title);
    parts.push(Uint8Array.of(0x50, 0x4b, 3, 4), fields.buffer, title, blob);
    offset += 30 + title.length + bytes.length;
  }
  const length = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, length, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...directory, end.buffer], { type: "application/zip" });
}

async function downloadAll() {
  const names = new Map();
  const files = items.flatMap((item) => {
    if (!done(item)) return [];
    // two photos of one name: cat, cat-2
    const count = (names.get(stem(item.name)) ?? 0) + 1;
    names.set(stem(item.name), count);
    const own = stem(item.name) + (count === 1 ? "" : `-${count}`);
    return sides.flatMap((side) =>
      side.outputs.map((output) => [fileName(own, side, output), item.answers[side.model][output]]),
    );
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await zip(files));
  link.download = "petseg.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- the page around ---

function say(text) {
  find("status").textContent = text;
}

function complain(text) {
  find("problem").hidden = !text;
  find("problem").textContent = text;
}

function drawList() {
  if (items.length < 2) return;
  const focused = [...find("list").children].findIndex((entry) => entry.contains(document.activeElement));
  find("list").replaceChildren(
    ...items.map((item) => {
      const entry = document.createElement("li");
      const button = document.createElement("button");
      const image = document.createElement("img");
      const name = document.createElement("span");
      const state = document.createElement("span");
      image.src = item.url;
      image.alt = "";
      image.addEventListener("error", () => (image.style.visibility = "hidden"));
      name.textContent = item.name;
      state.textContent = item.error ?? (done(item) ? "done" : "waits");
      state.className = item.error ? "failed" : "soft";
      button.type = "button";
      button.setAttribute("aria-current", item === current);
      button.append(image, name, state);
      button.addEventListener("click", () => show(item));
      entry.append(button);
      return entry;
    }),
  );
  find("list").children[focused]?.firstChild.focus();
}

function makeSide(model) {
  const root = find("side").content.firstElementChild.cloneNode(true);
  const stage = root.querySelector(".stage");
  const slider = root.querySelector("input[type=range]");
  const side = {
    model: model.name,
    title: model.title,
    classes: model.classes,
    // a trimap has a boundary
    outputs: OUTPUTS.filter((output) => output !== "trimap" || model.classes.some((each) => each.role === "boundary")),
    root,
    photo: root.querySelector(".photo"),
    result: root.querySelector(".result img"),
    urls: [],
    shown: "",
    answer: null,
  };
  root.setAttribute("aria-label", model.title);
  root.querySelector("h2").textContent = model.title;
  root.querySelector(".head span").textContent =
    model.name + (model.miou === null ? "" : `, ${(100 * model.miou).toFixed(1)} % mIoU`);
  slider.setAttribute("aria-label", `${model.title}: how much of the photo is shown beside the result`);
  slider.addEventListener("input", () => slideTo(slider.value));
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slideTo(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => event.buttons && follow(event));
  const downloads = root.querySelector(".downloads");
  downloads.setAttribute("aria-label", `Files of ${model.title}`);
  const word = document.createElement("span");
  word.textContent = "Download";
  downloads.append(word);
  for (const output of side.outputs) {
    const link = document.createElement("a");
    link.className = "button";
    link.dataset.output = output;
    link.textContent = TITLES[output];
    link.setAttribute("aria-label", `Download ${model.title}'s ${TITLES[output]}`);
    downloads.append(link);
  }
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy ${model.title}'s result to the clipboard`);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": side.answer[view()] })]);
      say("Copied");
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    } catch {
      complain("The browser did not allow copying; download the file instead.");
    }
  });
  downloads.append(copy);
  return side;
}

function makeChoice(side) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = side.model;
  box.addEventListener("change", choose);
  label.append(box, ` ${side.title}`);
  return label;
}

// Shows the default model and those that are ticked.
function choose() {
  const ticked = new Set([...find("others").querySelectorAll("input:checked")].map((box) => box.value));
  sides = offered.filter((side, place) => place === 0 || ticked.has(side.model));
  find("pair").replaceChildren(...sides.map((side) => side.root));
  if (current && !camera) again();
}

// The sliders move together, so that the same place is compared.
function slideTo(value) {
  for (const { root } of offered) {
    root.querySelector("input[type=range]").value = value;
    root.querySelector(".stage").style.setProperty("--at", `${value}%`);
  }
}

async function drawComparison() {
  if (find("choices").childElementCount) return;
  const published = await (await fetch("api/results")).json();
  const open = (name, url) => {
    for (const button of find("choices").children) button.setAttribute("aria-pressed", button.dataset.name === name);
    find("drawing").hidden = false;
    find("report").hidden = true;
    find("report").src = url;
  };
  for (const { name, answer, url } of published) {
    const button = document.createElement("button");
    const title = document.createElement("b");
    const summary = document.createElement("span");
    button.type = "button";
    button.dataset.name = name;
    title.textContent = `Protocol ${name}`;
    summary.textContent = answer.join(" ");
    button.append(title, summary);
    button.addEventListener("click", () => open(name, url));
    find("choices").append(button);
  }
  if (published.length) open(published[0].name, published[0].url);
}

function fitReport() {
  const report = find("report");
  const body = report.contentDocument?.body;
  if (body?.childElementCount) report.style.height = `${report.contentDocument.documentElement.offsetHeight + 4}px`;
}

find("report").addEventListener("load", () => {
  if (!find("report").getAttribute("src")) return;
  find("drawing").hidden = true;
  find("report").hidden = false;
  fitReport();
  new ResizeObserver(fitReport).observe(find("report").contentDocument.documentElement);
});

function turnTo(name, focus) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "comparison") drawComparison();
  if (name !== "try") stopWebcam();
  if (focus) find(`${name}-title`).focus();
}

const PAGES = ["try", "comparison", "api"];
const page = () => PAGES.find((name) => location.hash === `#${name}`) ?? "try";
addEventListener("hashchange", () => location.hash !== "#main" && turnTo(page(), true));

find("file").addEventListener("change", (event) => {
  if (event.target.files.length) take([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
});
find("sample").addEventListener("click", async () => {
  const blob = await (await fetch("cat.jpg")).blob();
  take([new File([blob], "cat.jpg", { type: blob.type })]);
});
find("webcam").addEventListener("click", () => (camera ? stopWebcam() : startWebcam()));
find("zip").addEventListener("click", downloadAll);
document.querySelectorAll("input[name=view]").forEach((radio) => radio.addEventListener("change", render));

let inside = 0; // dragenter and dragleave come for each element under way
addEventListener("dragenter", () => find("drop").classList.toggle("over", ++inside > 0));
addEventListener("dragleave", () => find("drop").classList.toggle("over", --inside > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  find("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  else complain("That was no file. Drop a photo from a folder, or copy an image and paste it here.");
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) take(files);
  else complain("The clipboard holds no image.");
});

async function start() {
  try {
    about = await (await fetch("api/models")).json();
  } catch {
    return complain(GONE);
  }
  const best = about.models.filter((model) => model.best);
  offered = best.sort((one, other) => (other.name === about.default) - (one.name === about.default)).map(makeSide);
  find("others").append(...offered.slice(1).map(makeChoice));
  find("others").hidden = offered.length < 2;
  choose();
  for (const { root, photo, result } of offered) {
    for (const image of [photo, result]) {
      const fit = () => root.querySelector(".stage").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      image.addEventListener("load", fit);
    }
    photo.addEventListener("load", () => root.classList.remove("alone"));
    photo.addEventListener("error", () => root.classList.add("alone"));
  }
  const classes = offered.flatMap((side) => side.classes);
  const unique = [...new Set(objects(classes))];
  find("try-title").textContent = about.shipped ? `Cut out your ${unique.join(" or ")}` : `Cut out: ${unique.join(", ")}`;
  document.title = `petseg: ${find("try-title").textContent.toLowerCase()}`;
  find("sample").hidden = document.querySelector("nav a[href='#comparison']").hidden = !about.shipped;
  find("class-names").textContent = [...new Set(classes.map((each) => each.name))].join(", ");
  const from = `${location.origin}/api`;
  const photo = about.shipped ? "cat.jpg" : "photo.jpg";
  find("commands").textContent = [
    `curl -F image=@${photo} '${from}/segment?output=cutout' > cutout.png`,
    `curl -F image=@${photo} '${from}/segment?model=${offered.at(-1).model}&output=json'`,
    `curl -H 'Content-Type: image/jpeg' --data-binary @${photo} '${from}/segment' > mask.png`,
    `curl ${from}/models`,
  ].join("\n");
  find("names").textContent = [...new Set(about.models.flatMap(({ name, kind }) => (kind ? [kind, name] : [name])))].join(", ");
  find("limits").textContent = `${megabytes(about.upload_bytes)} and ${about.pixels / 1e6} megapixels a photo`;
  turnTo(page(), false);
  document.body.dataset.ready = "true";
}

start();
