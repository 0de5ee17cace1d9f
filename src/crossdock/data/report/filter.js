// Narrows the table of tensors to the rows that contain every word, and orders it by the column that is clicked.
// Without scripts the whole table is shown.
const table = document.getElementById("mapping");
if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row, row.textContent.toLowerCase()]);
  const input = Object.assign(document.createElement("input"), {
    type: "search", placeholder: `Filter ${rows.length} tensors: layers.3 q8_0 different`,
  });
  input.setAttribute("aria-label", "Filter tensors");
  const count = Object.assign(document.createElement("span"), { className: "soft" });
  table.parentNode.before(input, " ", count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} shown` : "";
  });
  // a shape counts by its elements; what has no number comes last
  const size = (text) => text.split("×").reduce((product, part) => product * parseFloat(part.replaceAll(",", "")), 1);
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = Object.assign(document.createElement("button"), { textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort === "descending" || (head.ariaSort !== "ascending" && head.className !== "n");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = up ? "ascending" : "descending";
      const cell = (row) => row.cells[column]?.textContent ?? "";
      const key = head.className === "n" ? (row) => size(cell(row)) : cell;
      const sorted = rows.map(([row]) => [key(row), row]);
      const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      sorted.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || (Number.isNaN(a) ? 0 : (up ? 1 : -1) * order(a, b)));
      body.append(...sorted.map(([, row]) => row));
    });
  });
}
