"""Prints the book and the slides to PDF with Chromium: `python -m tightgrad_lab.report.pdf report`."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.pages import WHOLE, file_name
from tightgrad_lab.report.texts import LANGUAGES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer")


def print_book(report: Path) -> list[Path]:
    """Write book.pdf and book.zh.pdf into a folder that `tightgrad report` has written; return their paths.

    Raises:
        ReportError: there is no book in the folder, no Chromium on PATH, or Chromium wrote nothing.
    """
    return [_printed(report.resolve() / file_name(WHOLE, language), "tightgrad report") for language in LANGUAGES]


def print_slides(report: Path) -> list[Path]:
    """Write slides.en.pdf and slides.zh.pdf into a folder that `tightgrad slides` has written; return their paths.

    Raises:
        ReportError: there are no slides in the folder, no Chromium on PATH, or Chromium wrote nothing.
    """
    pages = [report.resolve() / f"slides.{language}.html" for language in LANGUAGES]
    return [_printed(page, "tightgrad slides") for page in pages]


def _printed(page: Path, command: str) -> Path:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ReportError(f"No Chromium on PATH; looked for {', '.join(BROWSERS)}. Install one, or print {page.name}.")
    if not page.is_file():
        raise ReportError(f"There is no {page}. Run `{command}` first.")
    target = page.with_suffix(".pdf")
    done = subprocess.run([browser, *ARGUMENTS, f"--print-to-pdf={target}", page.as_uri()], capture_output=True)
    if done.returncode or not target.is_file():
        raise ReportError(f"{browser} did not print {page}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return target


def main(arguments: Sequence[str]) -> None:
    """Print the book and the slides of the folder that the arguments name, or of report/."""
    report = Path(arguments[0] if arguments else "report")
    print(*print_book(report), *print_slides(report), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
