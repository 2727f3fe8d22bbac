// Responses of PPO, token by token: what each was rewarded with, and how the update weighed it.

const signed = (value) => (value > 0 ? `+${number(value, 3)}` : number(value, 3));

class Responses {
  constructor(root, picture) {
    Object.assign(this, { root, picture, quantity: "rewards" });
    for (const type of ["pointerover", "focusin"]) root.addEventListener(type, (event) => this.#point(event));
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => hideTooltip());
    root.addEventListener("keydown", (event) => this.#walk(event));
  }

  show(run, example) {
    Object.assign(this, { run, example });
    hideTooltip();
    this.root.replaceChildren(...example.map((group, side) => this.#group(group, run.iterations[side])));
    this.color(this.quantity);
  }

  // Colors all tokens by their "rewards" or their "advantages".
  color(quantity) {
    this.quantity = quantity;
    const most = this.run.scale[quantity];
    for (const node of this.root.querySelectorAll(".token")) {
      const value = node.of[quantity][node.index];
      const share = value == null ? 0 : Math.min(Math.abs(value) / most, 1);
      node.classList.toggle("up", value > 0);
      node.classList.toggle("down", value < 0);
      node.style.setProperty("--strength", `${share ? Math.round(10 + 90 * share) : 0}%`);
    }
  }

  #group(group, iteration) {
    const names = [make("h4", { class: "name" }, group.name), make("p", { class: "prompt" }, group.prompt)];
    const image = make("div", { class: "frame" }, picture(this.picture(group.image)));
    const cards = group.responses.map((response) => this.#card(response));
    if (group.more) cards.push(make("p", { class: "note" }, `${group.more} more in the records.`));
    return make(
      "section",
      { class: "side", "aria-label": `Iteration ${iteration}` },
      make("h3", {}, `Iteration ${iteration}`),
      make("div", { class: "asked" }, image, make("div", {}, ...names)),
      ...cards,
    );
  }

  #card(response) {
    const total = response.rewards.reduce((sum, value) => sum + (value ?? 0), 0);
    const count = response.rewards.length;
    const facts = [`reward ${signed(total)}`, `${count} token${count === 1 ? "" : "s"}`];
    if (response.finish !== "stop") facts.push(`ended by ${response.finish}`);
    const head = make("header", {}, make("span", { class: "number" }, `Response ${response.candidate}`));
    head.append(make("span", { class: "penalty" }, facts.join(" · ")));
    return make("section", { class: "card" }, head, this.#text(response));
  }

  // A response is one stop of the Tab key; within it, arrows go from token to token.
  #text(response) {
    const paragraph = make("p", { class: "caption tokens" });
    const letters = characters(response.text);
    const signals = response.signals.map(([stream, label, score, good, bad, isAbsent, isDenied, isWhole, ...steps]) => {
      return { stream, label, score, good, bad, isAbsent, isDenied, isWhole, spans: spansOf(steps) };
    });
    const last = response.rewards.length - 1;
    let at = 0;
    spansOf(response.spans).forEach(([from, to], index) => {
      const start = Math.max(from, at);
      paragraph.append(cut(letters, at, start));
      const text = cut(letters, start, Math.max(to, start));
      const node = make("span", { class: "token", tabindex: index ? "-1" : "0" });
      const own = signals.filter(({ spans }) =>
        spans.length ? spans.some(([a, b]) => a < to && b > from && from < to) : index === last,
      );
      Object.assign(node, { of: response, index, text, signals: own });
      node.classList.toggle("named", own.some(({ isWhole }) => !isWhole));
      if (text) node.append(text);
      else node.append(make("span", { class: "bare" }, index === last && response.finish === "stop" ? "end" : "·"));
      paragraph.append(node);
      at = Math.max(to, start);
    });
    paragraph.append(cut(letters, at, letters.length));
    return paragraph;
  }

  #point(event) {
    const node = event.target.closest(".token");
    if (!node) return hideTooltip();
    const { of, index, text, signals } = node;
    const rows = [
      ["reward", signed(of.rewards[index])],
      ["advantage", signed(of.advantages[index])],
      ["log p", number(of.logprobs[index], 3)],
      ["log p of the reference", number(of.ref_logprobs[index], 3)],
    ];
    if (of.values.length) rows.push(["value", number(of.values[index], 3)]);
    const said = text ? `“${text.replaceAll("\n", "⏎")}”` : node.textContent === "end" ? "end of the response" : "no letter";
    const title = make("p", {}, make("b", {}, said), ` token ${index + 1} of ${of.rewards.length}`);
    const list = rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    const content = [title, make("dl", {}, ...list)];
    if (signals.length) content.push(make("ul", {}, ...signals.map((signal) => this.#signal(signal))));
    showTooltip(node, ...content);
  }

  #signal({ stream, label, score, good, bad, isAbsent, isDenied }) {
    const worth = good - bad;
    const opinion = worth > 0 ? "rewarded" : worth < 0 ? "punished" : "neither";
    const notes = [isAbsent ? "not there" : "", isDenied ? "denied" : ""].filter(Boolean);
    const said = [`${opinion} ${signed(worth)}`, ...notes].join(", ");
    return make(
      "li",
      {},
      make("span", { class: "who" }, readable(stream)),
      make("span", {}, `${label} `, make("b", {}, number(score, 3))),
      make("span", { class: worth < 0 ? "down" : worth > 0 ? "up" : "" }, said),
    );
  }

  #walk(event) {
    const node = event.target.closest(".token");
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...node.parentElement.querySelectorAll(".token")];
    const at = all.indexOf(node);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to == null) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(to, all.length - 1))];
    node.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function openResponses(runs, picture) {
  const responses = new Responses(element("responses"), picture);
  let run = runs[0];
  let at = 0;

  function open(index) {
    at = Math.max(0, Math.min(index, run.examples.length - 1));
    element("example-count").textContent = `example ${at + 1} of ${run.examples.length}`;
    element("example-before").disabled = at === 0;
    element("example-after").disabled = at === run.examples.length - 1;
    const names = new Set(run.examples[at].map(({ name }) => name));
    element("different").hidden = names.size < 2;
    responses.show(run, run.examples[at]);
    label();
  }

  function label() {
    const most = run.scale[responses.quantity];
    const [low, high] = [element("scale-low"), element("scale-high")];
    [low.textContent, high.textContent] = [`≤ ${number(-most)}`, `≥ +${number(most)}`];
  }

  runs.forEach((each, index) => element("ppo-run").append(make("option", { value: index }, each.name)));
  element("ppo-run").addEventListener("change", (event) => {
    run = runs[Number(event.target.value)];
    open(0);
  });
  element("example-before").addEventListener("click", () => open(at - 1));
  element("example-after").addEventListener("click", () => open(at + 1));
  for (const input of document.querySelectorAll("input[name=quantity]")) {
    input.addEventListener("change", () => {
      responses.color(input.value);
      label();
    });
  }
  document.querySelector("#token-controls").addEventListener("submit", (event) => event.preventDefault());
  open(0);
}
