// Narrows the table of tensors to the rows that contain every word. Without scripts the whole table is shown.
const table = document.getElementById("mapping");
if (table) {
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const input = Object.assign(document.createElement("input"), {
    type: "search", placeholder: `Filter ${rows.length} tensors: layers.3 q8_0 different`,
  });
  input.setAttribute("aria-label", "Filter tensors");
  const count = Object.assign(document.createElement("span"), { className: "soft" });
  table.before(input, " ", count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} shown` : "";
  });
}
