// Filters, the keyboard, and what ties the parts of the gallery together.

const state = { run: null, matches: [], at: 0 };
const FILTERS = ["search", "hallucinated", "disagree", "scope", "decided"];
const inputs = Object.fromEntries([...FILTERS, "run"].map((id) => [id, element(id)]));

function matching() {
  const words = inputs.search.value.trim().toLowerCase();
  const flags = (inputs.hallucinated.checked && HALLUCINATED) | (inputs.disagree.checked && DISAGREE);
  const isChosenOnly = inputs.scope.value === "chosen";
  const decided = inputs.decided.value;
  const matches = (group) => {
    if (decided && decided !== decisionOf(group)) return false;
    const isNamed = !words || group.lower.includes(words);
    const fits = (candidate) =>
      candidate && (candidate.flags & flags) === flags && (isNamed || candidate.lower.includes(words));
    return isChosenOnly ? fits(group.candidates[group.chosen]) : group.candidates.some(fits);
  };
  return state.run.groups.filter(matches);
}

// What an image can be filtered by; nothing before the selection.
function decisionOf(group) {
  if (group.reason) return "none";
  return group.decided === "penalty" ? `penalty ${group.decisive}` : group.decided;
}

const DECISIONS = {
  content: "the only one with content",
  repetition: "a tie: fewer repetitions",
  positive: "a tie: what is right",
  logprob: "a tie: likelihood",
  index: "a tie: the first",
  only: "the only candidate",
  random: "drawn at random",
  none: "gave no target",
};

function fillDecisions() {
  const found = [...new Set(state.run.groups.map(decisionOf))].filter(Boolean).sort();
  const name = (decision) => DECISIONS[decision] ?? `decided by the ${readable(decision.split(" ")[1] || "penalty")}`;
  const before = inputs.decided.value;
  inputs.decided.replaceChildren(make("option", { value: "" }, "decided by anything"));
  for (const decision of found) inputs.decided.append(make("option", { value: decision }, name(decision)));
  inputs.decided.value = found.includes(before) ? before : "";
  inputs.decided.parentElement.hidden = found.length < 2;
}

function openGallery(runs, picture) {
  const detail = new Detail(element("detail"), picture);
  const strip = new Strip(element("strip"), picture, (index) => open(index));

  function open(index) {
    if (!state.matches.length) return;
    state.at = Math.max(0, Math.min(index, state.matches.length - 1));
    strip.go(state.at);
    detail.show(state.run, state.matches[state.at]);
  }

  // Stays with the image that is open, if it still matches.
  function filter() {
    const current = state.matches[state.at]?.name;
    state.matches = matching();
    state.at = Math.max(0, state.matches.findIndex((group) => group.name === current));
    const total = state.run.groups.length.toLocaleString("en");
    const count = state.matches.length.toLocaleString("en");
    element("count").textContent = count === total ? `${total} images` : `${count} of ${total}`;
    strip.show(state.matches, state.at);
    if (state.matches.length) open(state.at);
    else detail.clear("No image matches.");
  }

  function choose(index) {
    state.run = runs[index];
    fillDecisions();
    filter();
  }

  runs.forEach((run, index) => inputs.run.append(make("option", { value: index }, run.name)));
  inputs.disagree.parentElement.hidden = runs.every((run) => run.streams.length < 2);
  inputs.run.addEventListener("change", () => choose(Number(inputs.run.value)));
  for (const name of FILTERS) inputs[name].addEventListener("input", filter);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  element("help-button").addEventListener("click", () => element("help").showModal());

  const toggle = (input) => {
    input.checked = !input.checked;
    filter();
  };
  const walk = (step) => {
    element("gallery").scrollIntoView({ block: "nearest" });
    open(state.at + step);
  };
  const keys = {
    j: () => walk(1),
    k: () => walk(-1),
    ArrowRight: () => walk(1),
    ArrowLeft: () => walk(-1),
    h: () => toggle(inputs.hallucinated),
    d: () => toggle(inputs.disagree),
    "/": () => inputs.search.focus(),
    "?": () => element("help").showModal(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
    if (event.key === "Escape") document.activeElement.blur();
    if (event.target.matches("input[type=search], select") || event.target.closest("#ppo")) return;
    if (/^[0-9]$/.test(event.key)) detail.select(Number(event.key));
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  choose(0);
}
