"""A page in headless Chromium, and the questions that a test asks of its layout."""

from pathlib import Path
from typing import Any

from support.waiting import patience

# Overlaps and texts cut by the viewport, for each SVG that is shown. A pixel of slack is for rounding.
CHECK_SVG = """
() => [...document.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width > 0).flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const found = [];
  const texts = [...svg.querySelectorAll("text")].map((node) => [node.textContent, node.getBoundingClientRect()]);
  texts.forEach(([word, box], i) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
        || box.bottom > frame.bottom + 1) found.push(`cut: ${word}`);
    for (const [other, next] of texts.slice(i + 1)) {
      const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
      const up = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
      const lines = Math.min(box.height, next.height);
      if (across > 1 && up > 0.3 * lines) found.push(`overlap: ${word} / ${other}`);
    }
  });
  return found;
})
"""

CONTRAST = """
() => {
  const parse = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parse(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const nodes = document.querySelectorAll(
    "p, a, h1, h2, h3, td, th, th button, dt, dd, code, figcaption, .verdict, .label, svg text");
  const low = new Set();
  for (const node of nodes) {
    const style = getComputedStyle(node);
    if (node.matches(".skip, nav .done")) continue;
    const own = style.backgroundColor;
    const back = own.startsWith("rgba(0, 0, 0, 0") ? paper : light(own);
    const front = light(node.closest("svg") ? style.fill : style.color);
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) low.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
}
"""


class Opened:
    """A page, and what it asked of the network and said on the console."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(1000 * patience(30))
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.page.evaluate("document.fonts.ready")
