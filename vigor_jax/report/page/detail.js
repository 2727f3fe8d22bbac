// One image: its boxes, its candidates, and why one was chosen.

function rectangle([left, top, right, bottom], kind) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const attributes = { x: left, y: top, width: right - left, height: bottom - top, class: kind };
  for (const [name, value] of Object.entries(attributes)) rect.setAttribute(name, value);
  return rect;
}

class Detail {
  constructor(root, picture) {
    Object.assign(this, { root, picture });
    for (const type of ["pointerover", "focusin"]) root.addEventListener(type, (event) => this.#point(event));
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => this.#leave());
    root.addEventListener("click", (event) => {
      const card = event.target.closest("[data-candidate]");
      if (card) this.select(Number(card.dataset.candidate));
    });
  }

  clear(message) {
    this.#leave();
    this.group = null;
    this.root.replaceChildren(make("p", { class: "empty" }, message));
  }

  show(run, group) {
    Object.assign(this, { run, group });
    this.#leave();
    this.order = group.candidates.map((_, index) => index);
    const rank = (index) => (index === group.chosen ? -Infinity : (group.penalties?.[index] ?? index));
    const isEmpty = (index) => Number(index !== group.chosen && this.#isEmpty(index));
    this.order.sort((a, b) => isEmpty(a) - isEmpty(b) || rank(a) - rank(b) || a - b);
    this.boxes = make("div", { class: "boxes" });
    const found = this.picture(group.image);
    this.root.replaceChildren(
      make(
        "div",
        { class: "image" },
        make("figure", {}, make("div", { class: "frame" }, picture(found), this.boxes)),
        make("h3", { class: "name" }, group.name),
        make("p", { class: "prompt" }, group.prompt),
        ...this.#why(),
      ),
      make("div", { class: "candidates" }, ...this.order.map((index) => this.#card(index))),
    );
    this.select(this.order[0]);
  }

  // Shows the boxes of a candidate.
  select(index) {
    if (!this.group?.candidates[index]) return;
    this.selected = index;
    for (const card of this.root.querySelectorAll("[data-candidate]")) {
      card.classList.toggle("selected", Number(card.dataset.candidate) === index);
    }
    this.#draw(index);
  }

  #draw(index, current = null) {
    const things = new Map();
    for (const signals of this.group.candidates[index].signals) {
      for (const [thing] of signals) things.set(thing, this.group.things[thing]);
    }
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 1000 1000");
    svg.setAttribute("preserveAspectRatio", "none");
    const labels = [];
    for (const [thing, [label, score, , , boxes, kind]] of things) {
      if (kind && thing !== current) continue; // a claim's boxes are those of its thing
      const state = current == null ? "" : thing === current ? "current" : "dim";
      boxes.forEach((corners, place) => {
        svg.append(rectangle(corners, state));
        if (place) return;
        const [left, top] = corners;
        const tag = make("span", { class: `tag ${state}` }, kind ? label : `${label} ${probability({ score })}`);
        tag.style.cssText = `left:${left / 10}%;top:${top / 10}%`;
        labels.push(tag);
      });
    }
    svg.append(...this.#written(index).map((corners) => rectangle(corners, "written")));
    this.boxes.replaceChildren(svg, ...labels);
  }

  // The boxes in the text of a candidate, in thousandths of the image: there they are relative to the square around it.
  #written(index) {
    const { width, height } = this.picture(this.group.image) ?? { width: 1, height: 1 };
    const side = Math.max(width, height);
    const inside = (place, length) => (place * side - 500 * (side - length)) / length;
    return (this.group.candidates[index].boxes ?? []).map(([, , left, top, right, bottom]) => [
      inside(left, width), inside(top, height), inside(right, width), inside(bottom, height),
    ]);
  }

  // Whether a candidate has no content; unknown of a run that an earlier version made.
  #isEmpty(index) {
    return this.group.has_content?.[index] === false;
  }

  #why() {
    const { group, run } = this;
    if (group.chosen < 0) return [];
    const next = this.order[1];
    const [own, other] = [group.penalties[group.chosen], group.penalties[next]];
    const name = (index) => `candidate ${index}`; // as in the files
    const tie = (what) => `Its penalty, ${number(own)}, is also that of ${name(next)}; ${what}.`;
    const reasons = {
      content: () => "It is the only one with content: the others are too short, or nothing in them was judged.",
      repetition: () => tie("as much of both was found right, and it repeats fewer of its sentences"),
      penalty: () => {
        const column = run.terms.indexOf(group.decisive);
        const part = column < 0 ? 0 : group.terms[next][column] - group.terms[group.chosen][column];
        const isOfMany = column >= 0 && run.terms.length > 1;
        const most = isOfMany ? ` The ${readable(group.decisive)}’s term differs most, by ${number(part)}.` : "";
        return `It has the lowest penalty: ${number(own)}, and ${name(next)}, the next best, ${number(other)}.${most}`;
      },
      positive: () => tie("more of it was found right"),
      logprob: () => tie("the model holds it for likelier"),
      index: () => tie("nothing tells them apart, so the first was taken"),
      only: () => "It is the only candidate.",
      random: () => "It was drawn at random.",
    };
    const reason = reasons[group.decided]?.() ?? group.decided;
    const lines = [make("p", {}, make("b", {}, `Why ${name(group.chosen)}. `), reason)];
    if (group.reason) lines.push(make("p", { class: "bad" }, `No target: ${group.reason}.`));
    return [make("div", { class: "why" }, ...lines)];
  }

  #card(index) {
    const { group } = this;
    const isChosen = index === group.chosen;
    const candidate = group.candidates[index];
    const head = make("header", {}, make("span", { class: "number" }, `Candidate ${index}`));
    if (isChosen) head.append(make("span", { class: "chosen" }, "chosen"));
    if (group.penalties) head.append(make("span", { class: "penalty" }, `penalty ${number(group.penalties[index])}`));
    const card = make("section", {
      class: `card${isChosen ? " is-chosen" : ""}`,
      "data-candidate": index,
      "aria-label": `Candidate ${index}`,
    });
    card.append(head, this.#text(candidate, isChosen), this.#terms(index));
    return card;
  }

  #text(candidate, isChosen) {
    const paragraph = make("p", { class: "caption" });
    const letters = characters(candidate.text);
    let at = 0;
    for (let i = 0; i < candidate.sentences.length; i += 2) {
      const [start, end] = candidate.sentences.slice(i, i + 2);
      paragraph.append(cut(letters, at, start), this.#sentence(candidate, letters, start, end, isChosen));
      at = end;
    }
    paragraph.append(cut(letters, at, letters.length));
    if (!candidate.text.trim()) paragraph.append(make("span", { class: "faint" }, "(empty)"));
    return paragraph;
  }

  #sentence(candidate, letters, start, end, isChosen) {
    const signals = signalsOn(this.group, candidate, this.run.streams, start, end);
    const dropped = isChosen && this.group.dropped.find(([from, to]) => from < end && to > start);
    const color = tint(signals);
    const node = make(dropped ? "del" : "span", { class: `sentence ${color?.kind ?? ""}`, tabindex: "0" });
    if (color) node.style.setProperty("--strength", `${color.strength}%`);
    const repaired = (isChosen && this.group.repaired?.filter(([from, to]) => from >= start && to <= end)) || [];
    Object.assign(node, { signals, dropped: dropped?.[2], repaired: repaired.map((repair) => repair[3]) });
    const phrases = signals.filter((signal) => !signal.isWhole);
    const boxes = (candidate.boxes ?? []).filter(([from, to]) => from < end && to > start);
    const cutOut = [...boxes, ...repaired].flatMap(([from, to]) => [from, to]);
    const edges = new Set([start, end, ...phrases.flatMap((signal) => signal.spans.flat()), ...cutOut]);
    const cuts = [...edges].sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i++) {
      const isBox = boxes.some(([from, to]) => from <= cuts[i] && to >= cuts[i + 1]);
      const text = isBox
        ? make("span", { class: "box" }, cut(letters, cuts[i], cuts[i + 1]))
        : cut(letters, cuts[i], cuts[i + 1]);
      const here = phrases.filter(({ spans }) => spans.some(([from, to]) => from <= cuts[i] && to >= cuts[i + 1]));
      const shown = ["bad", "good", "unknown"].map((kind) => here.find((each) => kindOf(each) === kind)).find(Boolean);
      const made = () => make("span", { class: `phrase ${kindOf(shown)}`, "data-thing": shown.index }, text);
      const piece = shown ? made() : text;
      const repair = repaired.find(([from, to]) => from <= cuts[i] && to >= cuts[i + 1]);
      node.append(repair ? make("del", { class: "replaced" }, piece) : piece);
      if (repair?.[1] === cuts[i + 1]) node.append(make("ins", {}, repair[2]));
    }
    return node;
  }

  #terms(index) {
    const { group, run } = this;
    const { logprob, finish } = group.candidates[index];
    const row = (name, value, kind = "") => make("div", { class: kind }, make("dt", {}, name), make("dd", {}, value));
    const rows = (group.terms?.[index] ?? []).map((term, column) => {
      const stream = run.terms[column];
      return row(readable(stream), number(term), stream === group.decisive ? "decisive" : "");
    });
    rows.push(row("log p / token", number(logprob)));
    if (finish !== "stop") rows.push(row("ended by", finish));
    if (group.repeats?.[index]) rows.push(row("repeated sentences", String(group.repeats[index])));
    if (this.#isEmpty(index)) rows.push(row("without content", ""));
    return make("dl", { class: "terms" }, ...rows);
  }

  #point(event) {
    const sentence = event.target.closest(".sentence");
    if (!sentence) return this.#leave();
    const thing = event.target.closest("[data-thing]")?.dataset.thing;
    const current = thing == null ? null : Number(thing);
    const card = Number(sentence.closest("[data-candidate]").dataset.candidate);
    this.#draw(card, current);
    const dropped = sentence.dropped ? [make("p", { class: "bad" }, `Left out: ${sentence.dropped}`)] : [];
    const repaired = [...new Set(sentence.repaired)].map((reason) => make("p", {}, `Replaced: ${reason}`));
    this.pointed = sentence;
    showTooltip(sentence, describe(sentence.signals, current), ...dropped, ...repaired);
  }

  #leave() {
    if (!this.pointed) return;
    this.pointed = null;
    hideTooltip();
    if (this.group) this.#draw(this.selected);
  }
}
