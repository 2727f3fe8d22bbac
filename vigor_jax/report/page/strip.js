// The pictures that match, of which only those in sight are in the document: next to the detail in rows, or above it in
// one line where the page is narrow.

class Strip {
  #items = [];
  #at = 0;
  #made = new Map();

  constructor(root, picture, onOpen) {
    Object.assign(this, { root, picture, onOpen });
    this.canvas = make("div", { class: "canvas", role: "presentation" });
    root.append(this.canvas);
    root.addEventListener("scroll", () => this.#render(), { passive: true });
    new ResizeObserver(() => this.#reset()).observe(root);
    root.addEventListener("click", (event) => {
      const tile = event.target.closest("[data-index]");
      if (tile) onOpen(Number(tile.dataset.index));
    });
  }

  show(items, at) {
    this.#items = items;
    this.root.scrollTo(0, 0);
    this.#at = at;
    this.#reset();
    this.go(at);
  }

  go(at) {
    this.#mark(false);
    this.#at = at;
    const { side, columns } = this.#layout();
    const [start, size, name] = this.isLine
      ? [at * side, this.root.clientWidth, "scrollLeft"]
      : [Math.floor(at / columns) * side, this.root.clientHeight, "scrollTop"];
    const seen = this.root[name];
    if (start < seen || start + side > seen + size) this.root[name] = start - (size - side) / 2;
    this.#render();
    this.#mark(true);
  }

  get isLine() {
    return this.root.clientHeight < 150;
  }

  #layout() {
    const width = this.root.clientWidth;
    if (this.isLine) return { side: this.root.clientHeight, columns: 1 };
    const columns = Math.max(1, Math.round(width / 92));
    return { side: Math.floor(width / columns), columns };
  }

  #reset() {
    for (const tile of this.#made.values()) tile.remove();
    this.#made.clear();
    const { side, columns } = this.#layout();
    const length = Math.ceil(this.#items.length / columns) * side;
    this.canvas.style.width = this.isLine ? `${length}px` : "100%";
    this.canvas.style.height = this.isLine ? "100%" : `${length}px`;
    this.#render();
  }

  #render() {
    const { side, columns } = this.#layout();
    if (!side) return;
    const [scrolled, size] = this.isLine
      ? [this.root.scrollLeft, this.root.clientWidth]
      : [this.root.scrollTop, this.root.clientHeight];
    const first = Math.max(0, Math.floor(scrolled / side) - 2) * columns;
    const last = Math.min(this.#items.length, (Math.ceil((scrolled + size) / side) + 2) * columns);
    for (const [index, tile] of this.#made) {
      if (index < first || index >= last) {
        tile.remove();
        this.#made.delete(index);
      }
    }
    for (let index = first; index < last; index++) {
      if (this.#made.has(index)) continue;
      const tile = this.#tile(this.#items[index], index);
      const [row, column] = this.isLine ? [0, index] : [Math.floor(index / columns), index % columns];
      tile.style.cssText = `width:${side}px;height:${side}px;transform:translate(${column * side}px,${row * side}px)`;
      this.#made.set(index, tile);
      this.canvas.append(tile);
    }
  }

  #tile(group, index) {
    const chosen = group.candidates[group.chosen];
    const isOff = chosen && chosen.flags & HALLUCINATED;
    return make(
      "div",
      {
        class: "tile",
        role: "option",
        id: `tile-${index}`,
        title: group.name,
        "aria-label": group.name,
        "aria-selected": index === this.#at ? "true" : "false",
        "data-index": index,
      },
      picture(this.picture(group.image)),
      ...(isOff ? [make("span", { class: "dot", title: "the chosen caption mentions what is not there" })] : []),
    );
  }

  #mark(selected) {
    this.#made.get(this.#at)?.setAttribute("aria-selected", String(selected));
    if (selected) this.root.setAttribute("aria-activedescendant", `tile-${this.#at}`);
  }
}
