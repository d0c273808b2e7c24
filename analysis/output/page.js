"use strict";
// Sorting: a click on a heading, a second one reverses; empty cells stay last.
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
for (const table of all("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : head.dataset.first === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) =>
        head.classList.contains("number") ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return descending ? compare(key(b), key(a)) : compare(key(a), key(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// The filter: rows that hold every word.
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/);
  const rows = all("#results tbody tr");
  const kept = rows.filter((row) => words.every((word) => row.textContent.toLowerCase().includes(word)));
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
  const [x0, x1] = figure.dataset.x.split(",").map(Number), [y0, y1] = figure.dataset.y.split(",").map(Number);
  
  const [left, right, bottom, top] = svg.dataset.box.split(",").map(Number);
  const show = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = null;
    for (const curve of all(".curve.chosen", svg)) {
      if (curve.style.display === "none") continue;
      const line = curve.querySelector("polyline"), dot = curve.querySelector("circle");
      const points = line ? [...line.points] : [{ x: dot.cx.baseVal.value, y: dot.cy.baseVal.value }];
      for (const point of points) {
        const far = Math.hypot(point.x - at.x, point.y - at.y);
        if (!best || far < best.far) best = { far, point, name: curve.dataset.row };
      }
    }
    if (!best) return;
    const x = x0 + ((best.point.x - left) / (right - left)) * (x1 - x0);
    const y = y0 + ((bottom - best.point.y) / (bottom - top)) * (y1 - y0);
    told.textContent = `${best.name}: ${y.toFixed(Number(figure.dataset.digits))} at ${figure.dataset.xName} ${Number(x.toFixed(1))}`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", () => { told.textContent = "\u00a0"; });
}
