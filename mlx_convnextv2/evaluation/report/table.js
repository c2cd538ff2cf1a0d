"use strict";
// Tables are complete without this: it sorts their rows by a column, and shows those whose first cell has some text.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const number = (cell) => Number(cell.dataset.value ?? cell.textContent.replaceAll(",", ""));
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.ariaSort !== "ascending";
      const sign = ascending ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [first, second] = [a.cells[column], b.cells[column]];
        const order = column ? number(first) - number(second) : first.textContent.localeCompare(second.textContent);
        return sign * order;
      });
      body.append(...rows);
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = ascending ? "ascending" : "descending";
    });
  });
  const search = table.closest("section").querySelector("input[type=search]");
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
