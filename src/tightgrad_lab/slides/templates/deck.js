(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const sections = all(".slides > section");

  // A table takes the largest type with which all its rows fit; only then does it lose rows, from the middle.
  const fits = (slide) => slide.scrollHeight <= slide.clientHeight && slide.scrollWidth <= slide.clientWidth;
  const fitTable = (slide) => {
    const table = slide.querySelector(".fit table");
    const rows = all("tbody tr", table);
    const sizes = [21, 20, 19, 18, 17, 16, 15];
    const take = (size) => { table.style.fontSize = `${size}px`; return fits(slide); };
    while (!sizes.some(take) && rows.length > 3) rows.splice(Math.floor(rows.length / 2), 1)[0].remove();
    [14, 13, 12, 11].some((size) => fits(slide) || take(size));
    const note = slide.querySelector(".rows");
    const { count, text } = note.dataset;
    note.hidden = rows.length === Number(count);
    note.firstElementChild.textContent = text.replace("{count}", count).replace("{shown}", rows.length);
  };

  const notesOf = (section) => section.querySelector("aside.notes").innerHTML;
  const panel = document.getElementById("notes");
  let speaker = null;
  let started = null;

  const show = () => {
    const place = sections.indexOf(Reveal.getCurrentSlide());
    panel.innerHTML = notesOf(sections[place]);
    if (!speaker || speaker.closed) return;
    const next = sections[place + 1];
    speaker.document.getElementById("where").textContent =
      `${place + 1} / ${sections.length}  ${sections[place].getAttribute("aria-label")}`;
    speaker.document.getElementById("said").innerHTML = notesOf(sections[place]);
    speaker.document.getElementById("next").textContent =
      `${WORDS["notes.next"]}: ${next ? next.getAttribute("aria-label") : WORDS["notes.end"]}`;
  };

  // The window is written from here, so that it works from the disk too, where pages may not talk to each other.
  const openSpeaker = () => {
    speaker = window.open("", "speaker", "width=760,height=640");
    if (!speaker) { alert(WORDS["notes.blocked"]); return; }
    const { document: page } = speaker;
    page.open();
    page.write(`<!DOCTYPE html><html lang="${document.documentElement.lang}"><meta charset="utf-8">
<title>${WORDS["notes.title"]}</title><style>body { font: 20px/1.6 sans-serif; margin: 24px; max-width: 44em;
color-scheme: light dark } #where, #next, .minutes { color: GrayText } #clock { font-size: 28px } </style>
<p><span id="clock" role="timer" aria-label="${WORDS["notes.clock"]}">00:00</span>
<button id="restart">${WORDS["notes.restart"]}</button></p><h1 id="where" style="font-size: 20px"></h1>
<div id="said"></div><p id="next"></p></html>`);
    page.close();
    started = Date.now();
    page.getElementById("restart").addEventListener("click", () => { started = Date.now(); });
    page.addEventListener("keydown", (event) => {
      if (["ArrowRight", "PageDown", " "].includes(event.key) && event.target.id !== "restart") Reveal.next();
      if (["ArrowLeft", "PageUp"].includes(event.key)) Reveal.prev();
    });
    show();
  };
  setInterval(() => {
    if (!speaker || speaker.closed) return;
    const seconds = Math.floor((Date.now() - started) / 1000);
    const two = (value) => String(value).padStart(2, "0");
    speaker.document.getElementById("clock").textContent = `${two(Math.floor(seconds / 60))}:${two(seconds % 60)}`;
  }, 500);

  // A tall figure is small on its slide: a click or Z shows it as wide as the slide, to scroll through.
  const zoom = (drawing) => drawing?.classList.toggle("zoomed");
  const unzoom = () => all(".drawing.zoomed").forEach(zoom);
  all(".drawing").forEach((drawing) => drawing.addEventListener("click", () => zoom(drawing)));

  // Everything is loaded, so the tables are measured once and for all, before anybody can print.
  addEventListener("load", () => {
    document.documentElement.classList.add("measuring");
    all(".of-table").filter((slide) => slide.querySelector(".fit")).forEach(fitTable);
    document.documentElement.classList.remove("measuring");
    Reveal.initialize({
      width: 1280, height: 720, margin: 0, minScale: 0.1, center: false, hash: true, slideNumber: "c/t",
      transition: "none", backgroundTransition: "none", viewDistance: 60, mobileViewDistance: 60,
      keyboard: {
        83: openSpeaker,
        90: () => zoom(Reveal.getCurrentSlide().querySelector(".drawing")),
        78: () => { panel.hidden = !panel.hidden; document.body.classList.toggle("with-notes", !panel.hidden); Reveal.layout(); },
      },
    }).then(() => {
      Reveal.on("slidechanged", () => { unzoom(); show(); });
      show();
      document.documentElement.dataset.ready = "true";
    });
  });
})();
