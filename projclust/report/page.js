// Columns sort by a click on their names; without this script the page has everything but that.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) continue;
  const original = [...body.rows];
  const names = [...table.tHead.rows[0].cells];
  names.forEach((name, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...name.childNodes);
    name.append(button);
    button.addEventListener("click", () => {
      const order = name.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      names.forEach((other) => other.removeAttribute("aria-sort"));
      name.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace(/,(?=\d{3})/g, ""));
        return { text, number };
      };
      const rows = original.map((row) => ({ row, ...value(row) }));
      const numeric = rows.every(({ text, number }) => text === "" || !Number.isNaN(number));
      rows.sort((a, b) => {
        if (!a.text || !b.text) return (a.text ? 0 : 1) - (b.text ? 0 : 1);
        return sign * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}
