// A click on a heading sorts its table.
for (const head of document.querySelectorAll("table.sort thead th")) {
  head.setAttribute("aria-sort", "none");
  head.tabIndex = 0;
  const sort = () => {
    const [place, body] = [head.cellIndex, head.closest("table").tBodies[0]];
    const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const compare = (a, b) => Number(a) - Number(b) || a.localeCompare(b);
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (order === "descending" ? -1 : 1));
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}

// A link to a closed section opens it.
const reveal = (hash) => {
  const section = hash && document.getElementById(hash.slice(1));
  if (section?.tagName === "DETAILS") section.open = true;
};
for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", () => reveal(link.hash));
reveal(location.hash);
