"""Prints the book to PDF with Chromium: `python -m tightgrad_lab.report.pdf report`."""

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
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ReportError(f"No Chromium on PATH; looked for {', '.join(BROWSERS)}. Install one, or print book.html.")
    written = []
    for language in LANGUAGES:
        page = report.resolve() / file_name(WHOLE, language)
        if not page.is_file():
            raise ReportError(f"There is no {page}. Run `tightgrad report` first.")
        target = page.with_suffix(".pdf")
        done = subprocess.run([browser, *ARGUMENTS, f"--print-to-pdf={target}", page.as_uri()], capture_output=True)
        if done.returncode or not target.is_file():
            raise ReportError(f"{browser} did not print {page}: {done.stderr.decode(errors='replace').strip()[-300:]}")
        written.append(target)
    return written


def main(arguments: Sequence[str]) -> None:
    """Print the book of the folder that the arguments name, or of report/."""
    for path in print_book(Path(arguments[0] if arguments else "report")):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
