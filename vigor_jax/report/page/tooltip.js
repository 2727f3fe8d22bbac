// One box for all that is said of what is pointed at.

let pointed = null;

function showTooltip(anchor, ...content) {
  pointed = anchor;
  element("tooltip").replaceChildren(...content);
  element("tooltip").hidden = false;
  placeTooltip();
}

function hideTooltip() {
  pointed = null;
  element("tooltip").hidden = true;
}

// It goes above the first line of what is pointed at, or below the last.
function placeTooltip() {
  const tooltip = element("tooltip");
  const [at] = pointed.getClientRects();
  const { width, height } = tooltip.getBoundingClientRect();
  const top = at.top - height - 8;
  const left = Math.max(8, Math.min(at.left, innerWidth - width - 8));
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${top > 8 ? top : pointed.getBoundingClientRect().bottom + 8}px`;
}

addEventListener("scroll", () => pointed && placeTooltip(), { passive: true });
