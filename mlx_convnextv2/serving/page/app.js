// The page: pictures in, labels out, and a heat map for the label that is chosen.

import * as camera from "./camera.js";
import { classify, explain, info, KeyNeeded, useKey } from "./server.js";
import { percent, showBars, showFacts } from "./view.js";

const AT_ONCE = 4; // pictures that are sent at a time
const FINE_ENOUGH = 6; // positions on a side, from which on a map says something

const find = (id) => document.getElementById(id);
const waiting = [];
let running = 0;
let model = null;

function say(sentence) {
  find("status").textContent = sentence;
}

// Tell people of a problem; where the server wants a key, ask them for it.
function fail(sentence, error) {
  if (error instanceof KeyNeeded) {
    if (!find("key-dialog").open) find("key-dialog").showModal();
    return;
  }
  find("problem").textContent = sentence;
}

function add(files) {
  find("problem").textContent = "";
  const pictures = [...files];
  if (!pictures.length) return;
  find("results").hidden = false;
  for (const file of pictures) {
    const item = find("picture").content.firstElementChild.cloneNode(true);
    item.querySelector("h3").textContent = file.name || "Pasted picture";
    item.querySelector(".facts").textContent = "Waiting ...";
    find("pictures").prepend(item);
    waiting.push({ file, item });
  }
  work();
}

function work() {
  while (running < AT_ONCE && waiting.length) {
    const { file, item } = waiting.shift();
    running += 1;
    answer(file, item).finally(() => {
      running -= 1;
      work();
    });
  }
}

async function answer(file, item) {
  const facts = item.querySelector(".facts");
  const name = item.querySelector("h3").textContent;
  const start = performance.now();
  try {
    if (model && file.size > model.limits.max_body) {
      throw new Error(`it is larger than ${(model.limits.max_body / 1e6).toFixed(0)} MB, which this server takes at most`);
    }
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error("it cannot be read: drop pictures, not a folder");
    });
    const predictions = await classify(file);
    facts.textContent = `${Math.round(performance.now() - start)} ms`;
    show(file, item, predictions);
    say(`${name}: ${predictions[0].label}, ${percent(predictions[0].score)}`);
  } catch (error) {
    item.remove();
    find("results").hidden = !find("pictures").childElementCount;
    fail(`${name}: ${error.message}`, error);
    if (error instanceof KeyNeeded) {
      find("key-dialog").addEventListener("close", () => add([file]), { once: true });
    }
  }
}

function show(file, item, predictions) {
  const image = item.querySelector("img");
  const own = URL.createObjectURL(file);
  image.src = own;
  image.alt = item.querySelector("h3").textContent;
  item.picture = { file, own, shown: own, chosen: null };
  showBars(item.querySelector(".bars"), predictions, (prediction, button) => choose(item, prediction, button));
}

// Show the heat map of a label over its picture, or the picture again where it is shown already.
async function choose(item, prediction, button) {
  const { picture } = item;
  const again = picture.chosen?.button === button;
  item.querySelectorAll(".bars button").forEach((one) => one.setAttribute("aria-pressed", "false"));
  if (again) {
    picture.chosen = null;
    display(item, picture.own, picture.file.name);
    return;
  }
  const chosen = { prediction, button };
  picture.chosen = chosen;
  button.setAttribute("aria-pressed", "true");
  try {
    const drawn = await explain(picture.file, prediction.index, find("layer").value);
    if (picture.chosen !== chosen) return; // something else has been chosen since
    const map = `Heat map of ${prediction.label} over ${item.querySelector("h3").textContent}`;
    display(item, URL.createObjectURL(drawn), map);
    say(`${map} is shown.`);
  } catch (error) {
    if (picture.chosen !== chosen) return;
    button.setAttribute("aria-pressed", "false");
    picture.chosen = null;
    fail(error.message, error);
  }
}

function display(item, url, alt) {
  const { picture } = item;
  if (picture.shown !== picture.own) URL.revokeObjectURL(picture.shown);
  picture.shown = url;
  const image = item.querySelector("img");
  image.src = url;
  image.alt = alt;
}

function clear() {
  for (const { picture } of find("pictures").children) {
    if (picture) [picture.own, picture.shown].forEach((url) => URL.revokeObjectURL(url));
  }
  waiting.length = 0;
  find("pictures").replaceChildren();
  find("results").hidden = true;
  find("problem").textContent = "";
  find("choose").focus();
}

async function learn() {
  try {
    model = await info();
  } catch (error) {
    fail(error.message, error);
    return;
  }
  find("model").textContent = `Model: ${model.name}. Pictures go to this server alone, and are not kept.`;
  const megabytes = `${(model.bytes / 1e6).toFixed(1)} MB`;
  const kind = model.quantization ? `${model.quantization.bits} bits, ${model.quantization.mode}` : model.dtype;
  showFacts(find("facts"), [
    ["Model", model.name],
    ["Parameters", `${model.parameters.toLocaleString("en")}, ${megabytes} in ${kind}`],
    ["Labels", `${model.num_labels}: ${model.labels.slice(0, 8).join("; ")}${model.num_labels > 8 ? "; ..." : ""}`],
    ["Looks at", model.image_size ? `${model.image_size} x ${model.image_size} pixels` : "pictures as they are"],
    ["Computed by", model.device],
    ["Speed", model.seconds_per_batch ? `${(1000 * model.seconds_per_batch).toFixed(1)} ms a batch` : "not known yet"],
    ["Served by", `mlx_convnextv2 ${model.version}`],
  ]);
  find("card").textContent = model.card;
  find("card").hidden = !model.card;
  if (!find("layer").childElementCount) offerLayers();
}

// The maps that the model has, the coarsest first; chosen is the coarsest that says something.
function offerLayers() {
  const layers = model.layers.map((name, stage) => ({ name, positions: model.map_sides?.[stage] })).reverse();
  find("layer").replaceChildren(...layers.map(({ name, positions }, index) => {
    const grid = positions ? `${positions} x ${positions}, ` : "";
    return new Option(`${name}: ${grid}${index ? "by gradients" : "exact"}`, name);
  }));
  const chosen = layers.find(({ positions }) => !positions || positions >= FINE_ENOUGH) ?? layers.at(-1);
  find("layer").value = chosen.name;
}

find("choose").addEventListener("click", () => find("files").click());
find("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
find("clear").addEventListener("click", clear);
find("camera-start").addEventListener("click", () => {
  find("problem").textContent = "";
  camera.start(say, fail);
});
find("camera-stop").addEventListener("click", () => {
  camera.stop();
  find("camera-start").focus();
});
find("about").addEventListener("toggle", (event) => { if (event.target.open) learn(); });
find("layer").addEventListener("change", () => {
  for (const item of find("pictures").children) {
    const chosen = item.picture?.chosen;
    if (chosen) {
      item.picture.chosen = null;
      choose(item, chosen.prediction, chosen.button);
    }
  }
});
find("key-form").addEventListener("submit", () => {
  useKey(find("key").value);
  find("key").value = "";
  find("problem").textContent = "";
  learn();
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
});

learn();
