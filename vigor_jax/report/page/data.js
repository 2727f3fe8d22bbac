// What the page carries: records as compressed JSON, pictures as one run of bytes.

// Flags of a candidate: a stream finds something absent; two streams disagree on a sentence.
const HALLUCINATED = 1;
const DISAGREE = 2;

const element = (id) => document.getElementById(id);

function bytesOf(id) {
  const text = atob(element(id).textContent);
  element(id).remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function readRecords() {
  const packed = new Blob([bytesOf("records")]).stream();
  const { runs, ppo } = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).json();
  for (const run of runs) {
    for (const group of run.groups) {
      group.lower = group.name.toLowerCase();
      for (const candidate of group.candidates) unpack(candidate);
    }
  }
  return { runs, ppo };
}

// Places count from the one before: [2, 3, 1, 4] becomes [2, 5, 6, 10].
function unpack(candidate) {
  candidate.lower = candidate.text.toLowerCase();
  let at = 0;
  candidate.sentences = candidate.sentences.map((step) => (at += step));
  for (const signals of candidate.signals) {
    at = 0;
    for (const signal of signals) {
      for (let i = 1; i < signal.length; i++) signal[i] = at += signal[i];
    }
  }
}

// [2, 3, 1, 4] becomes [[2, 5], [6, 10]].
function spansOf(steps) {
  const spans = [];
  let at = 0;
  for (let i = 0; i + 1 < steps.length; i += 2) spans.push([(at += steps[i]), (at += steps[i + 1])]);
  return spans;
}

// Gives {width, height, url} of a picture, or null if it is missing; a picture becomes a blob when it is first seen.
function readPictures() {
  const sizes = JSON.parse(element("sizes").textContent);
  const bytes = bytesOf("thumbnails");
  const pictures = [];
  for (let i = 0, start = 0; i < sizes.length; i += 3) {
    pictures.push({ width: sizes[i], height: sizes[i + 1], start, end: (start += sizes[i + 2]), url: "" });
  }
  return (index) => {
    const picture = pictures[index];
    if (picture.start === picture.end) return null;
    picture.url ||= URL.createObjectURL(
      new Blob([bytes.subarray(picture.start, picture.end)], { type: "image/webp" }),
    );
    return picture;
  };
}

// An element with attributes and children. Text is only ever set as text.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const readable = (name) => name.replaceAll("_", " ");

function picture(found) {
  if (!found) return make("div", { class: "missing" }, "no image");
  return make("img", { src: found.url, alt: "", width: found.width, height: found.height, draggable: "false" });
}
