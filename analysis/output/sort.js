"use strict";
// A click on a heading sorts by it, a second one the other way round; what has no value stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : head.dataset.first === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) =>
        head.classList.contains("number") ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return falling ? compare(key(b), key(a)) : compare(key(a), key(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
