// What the streams say of a sentence, in words and as a color.

const ERRORS = new Set(["object", "attribute", "relationship", "location", "conjecture"]);
const number = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
const probability = (thing) => (thing.score == null ? "–" : (thing.score / 100).toFixed(2));

// Spans count characters, as Python does; JavaScript's strings count halves of some.
const characters = (text) => (/[\ud800-\udfff]/.test(text) ? [...text] : text);
const cut = (letters, start, end) => [].concat(letters.slice(start, end)).join("");

// What a signal says of a thing: isBad is null where the stream cannot say.
const kindOf = ({ isBad }) => (isBad == null ? "unknown" : isBad ? "bad" : "good");

// Signals that point into a sentence: {stream, index, label, score, isBad, isAbsent, kind, spans, isWhole}; the spans are
// those inside it, isWhole tells that the signal is about all of it, and kind is that of a claim.
function signalsOn(group, candidate, streams, start, end) {
  const found = [];
  candidate.signals.forEach((signals, column) => {
    for (const [index, ...places] of signals) {
      const spans = [];
      for (let i = 0; i < places.length; i += 2) {
        const [from, to] = places.slice(i, i + 2);
        if (from < end && to > start) spans.push([Math.max(from, start), Math.min(to, end)]);
      }
      if (!spans.length) continue;
      const [label, score, isBad, isAbsent, , kind] = group.things[index];
      const isWhole = spans.some(([from, to]) => from === start && to === end);
      found.push({ stream: streams[column], index, label, score, isBad, isAbsent, kind, spans, isWhole });
    }
  });
  return found;
}

// The reward model answers "1", or "0" and kinds of error; an untrained one anything.
function answerOf(label) {
  const [verdict, ...kinds] = label.split(/\s+/);
  if (label === "1") return "good";
  if (verdict !== "0" || !kinds.every((kind) => ERRORS.has(kind.split(":")[0]))) return label ? `“${label}”` : "";
  return kinds.join(", ") || "bad";
}

const FOUND = { good: "found", bad: "bad", unknown: "unknown" };

function describe(signals, current) {
  const rows = signals.map((signal) => {
    const said = signal.kind
      ? [`${signal.label} `, "", signal.isBad ? "wrong" : "right"]
      : !signal.isWhole
        ? [`${signal.label} `, probability(signal), signal.isAbsent ? "not there" : FOUND[kindOf(signal)]]
      : signal.stream === "reward_model"
        ? ["p(good) ", probability(signal), answerOf(signal.label)]
        : ["score ", probability(signal), signal.label];
    const kind = kindOf(signal);
    return make(
      "li",
      { class: signal.index === current ? "current" : "" },
      make("span", { class: "who" }, readable(signal.stream)),
      make("span", {}, said[0], make("b", {}, said[1])),
      make("span", { class: kind }, said[2]),
    );
  });
  return rows.length ? make("ul", {}, ...rows) : make("p", {}, "No stream says anything of this sentence.");
}

// A sentence's color: from the worst p(good), or from what was not found or is wrong where no stream judges whole
// sentences.
function tint(signals) {
  const whole = signals.filter((signal) => signal.isWhole && signal.score != null && signal.isBad != null);
  const worst = whole.length ? Math.min(...whole.map((signal) => signal.score)) / 100 : null;
  if (worst == null) return signals.some((signal) => signal.isBad) ? { kind: "bad", strength: 55 } : null;
  const isBad = whole.some((signal) => signal.isBad);
  return { kind: isBad ? "bad" : "good", strength: Math.round(Math.abs(worst - 0.5) * 2 * 85) + 15 };
}
