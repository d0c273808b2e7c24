"use strict";
// Sorting: a click on a heading, a second one reverses; empty cells stay last.
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
const body = document.querySelector("#results tbody"), heads = all("#results thead th");
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : head.dataset.first === "descending";
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (row) => row.cells[column].dataset.value;
  const isNumber = head.classList.contains("number"), sign = descending ? -1 : 1;
  const compare = (a, b) => isNumber ? a - b : a.localeCompare(b, "en", { numeric: true });
  const order = (a, b) => !key(a) || !key(b) ? !key(a) - !key(b) : sign * compare(key(a), key(b));
  body.append(...[...body.rows].sort(order));
}));
// The filter: rows that hold every word.
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/);
  const kept = [...body.rows].filter((row) => words.every((word) => row.textContent.toLowerCase().includes(word)));
  const names = new Set(kept.map((row) => row.dataset.row));
  all("tbody tr[data-row], details[data-row], svg .curve[data-row]").forEach((one) => {
    one.style.display = names.has(one.dataset.row) ? "" : "none";
  });
});
// Variants in colour: a tick in the table, or a button of the legend.
const choose = (name, chosen) =>
  all("[data-row]").filter((one) => one.dataset.row === name).forEach((one) => {
    one.classList.toggle("chosen", chosen);
    all(":scope > th input", one).forEach((box) => { box.checked = chosen; });
    all(":scope > button", one).forEach((button) => button.setAttribute("aria-pressed", chosen));
  });
all("#results input").forEach((box) => {
  box.addEventListener("change", () => choose(box.closest("tr").dataset.row, box.checked));
});
all(".legend button").forEach((button) => {
  const item = button.parentElement;
  button.addEventListener("click", () => choose(item.dataset.row, !item.classList.contains("chosen")));
});
// The value of the curve that is nearest to the pointer.
for (const figure of all(".charts figure")) {
  const svg = figure.querySelector("svg"), told = figure.querySelector("output");
  const [[x0, x1], [y0, y1], [left, right, bottom, top]] =
    [figure.dataset.x, figure.dataset.y, svg.dataset.box].map((text) => text.split(",").map(Number));
  const place = (point) => ({
    x: x0 + ((point.x - left) / (right - left)) * (x1 - x0), y: y0 + ((bottom - point.y) / (bottom - top)) * (y1 - y0),
  });
  const show = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const points = all(".curve.chosen", svg).filter((curve) => curve.style.display !== "none").flatMap((curve) => {
      const line = curve.querySelector("polyline"), dot = curve.querySelector("circle");
      const own = line ? [...line.points] : [{ x: dot.cx.baseVal.value, y: dot.cy.baseVal.value }];
      return own.map((point) => ({ ...place(point), name: curve.dataset.row, far: Math.hypot(point.x - at.x, point.y - at.y) }));
    });
    if (!points.length) return;
    const { name, x, y } = points.reduce((a, b) => (b.far < a.far ? b : a));
    told.textContent = `${name}: ${y.toFixed(Number(figure.dataset.digits))} at ${figure.dataset.xName} ${Number(x.toFixed(1))}`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", () => { told.textContent = "\u00a0"; });
}
