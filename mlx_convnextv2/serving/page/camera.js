// The camera: one frame after another goes to the server, as fast as it answers.

import { classify } from "./server.js";
import { percent, showBars } from "./view.js";

const SIDE = 480; // pixels of a frame's longer side
const AVERAGED = 10; // frames
const SPOKEN_EVERY = 3000; // milliseconds between what a screen reader says

const find = (id) => document.getElementById(id);

let stream = null;

export async function start(say, fail) {
  if (!navigator.mediaDevices?.getUserMedia) {
    fail("This browser gives the camera to pages of this machine or of https alone: open the page at http://localhost.");
    return;
  }
  find("camera-start").disabled = true; // a second click would leave this stream on
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch (error) {
    find("camera-start").disabled = false;
    const why = error.name === "NotAllowedError" ? "You have not allowed it." : "None was found, or it is in use.";
    fail(`The camera cannot be used. ${why}`);
    return;
  }
  const video = find("video");
  video.srcObject = stream;
  await video.play();
  find("camera").hidden = false;
  find("camera-stop").focus();
  await run(stream, video, say, fail);
}

export function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  find("video").srcObject = null;
  find("camera").hidden = true;
  find("camera-start").disabled = false;
}

async function run(own, video, say, fail) {
  const canvas = document.createElement("canvas");
  const times = [performance.now()];
  let spoken = { label: "", at: -Infinity };
  while (stream === own) {
    const picture = await frame(video, canvas);
    let predictions;
    try {
      predictions = await classify(picture);
    } catch (error) {
      if (stream === own) {
        stop();
        fail(error.message, error);
      }
      return;
    }
    if (stream !== own) return;
    times.push(performance.now());
    if (times.length > AVERAGED + 1) times.shift();
    const rate = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
    showBars(find("camera-labels"), predictions);
    find("camera-speed").textContent = `${rate.toFixed(1)} frames/s`;
    const [best] = predictions;
    if (best.label !== spoken.label && times.at(-1) - spoken.at > SPOKEN_EVERY) {
      spoken = { label: best.label, at: times.at(-1) };
      say(`The camera sees ${best.label}, ${percent(best.score)}`);
    }
  }
}

function frame(video, canvas) {
  const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
  canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
  canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.85); });
}
