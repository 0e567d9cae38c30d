(() => {
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 1080px)");
  const fold = () => { if (contents) contents.open = wide.matches; };
  fold();
  wide.addEventListener("change", fold);
  contents?.addEventListener("click", (event) => {
    if (!wide.matches && event.target.closest("a")) contents.open = false;
  });

  const anchor = location.hash.slice(1);
  const { whole } = document.body.dataset;
  if (whole && anchor && !document.getElementById(anchor)) location.replace(`${whole}#${anchor}`);

  const openFor = (hash) => {
    const target = hash.length > 1 && document.getElementById(hash.slice(1));
    const folded = target && target.closest("details.full");
    if (folded) folded.open = true;
  };
  openFor(location.hash);
  addEventListener("hashchange", () => openFor(location.hash));
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((one) => { one.open = true; }));

  const value = (row, column) => row.cells[column].dataset.value;
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        const rows = [...table.tBodies[0].rows];
        const numeric = rows.every((row) => value(row, column) === "" || !Number.isNaN(Number(value(row, column))));
        rows.sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
          return descending ? -order : order;
        });
        table.tBodies[0].append(...rows);
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      });
    });
  }

  const entries = contents ? [...contents.querySelectorAll("li > a:first-child")] : [];
  const links = new Map(entries.map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
})();
