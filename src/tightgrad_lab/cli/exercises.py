"""`tightgrad exercises`: list them, write a student's folder, grade a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.exercises import Sheet, Verdict
    from tightgrad_lab.exercises.catalogue import Language

WRONG = 1

exercises = typer.Typer(
    name="exercises",
    help="Work on the [bold]exercises[/] of the book's eight chapters, graded on fresh random cases.",
    epilog="Exit codes: 0 done or right, 1 the answer is wrong, 2 the arguments are wrong.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Lang = Annotated[str | None, typer.Option("--lang", help="Use this language: zh or en.")]


@exercises.command(name="list")
def list_(lang: Lang = "en") -> None:
    """List the exercises: number, chapter, kind, title."""
    from tightgrad_lab.exercises import sheets

    language = _language(lang, "en")
    chapter = "chapter {}" if language == "en" else "第 {} 章"
    for one in sheets():
        kind = one.kind(language)
        gap = " " * (14 - sum(2 if ord(letter) > 255 else 1 for letter in kind))
        print(f"{one.number:>2}  {chapter.format(one.chapter)}  {kind}{gap}{one.title(language)}")


@exercises.command()
def start(
    folder: Annotated[
        Path, typer.Argument(help="Write into this folder, which is made if it does not exist.", metavar="DIR")
    ],
    lang: Lang = "en",
    instructor: Annotated[bool, typer.Option("--instructor", help="Also write solutions and marking notes.")] = False,
) -> None:
    """Write task sheets, starter files and hints. Files that you have changed are left as they are."""
    from tightgrad_lab.exercises import start as write

    language = _language(lang, "en")
    written, kept = write(folder, language, instructor=instructor)
    for path in kept:
        print(f"left as it is: {path}" if language == "en" else f"保留未动：{path}")
    done = "{} files in {}; begin with {}" if language == "en" else "{} 个文件写入 {}；请先看 {}"
    print(done.format(len(written), folder, folder / "README.md"))


@exercises.command()
def check(
    number: Annotated[int, typer.Argument(help="Grade the exercise with this number.", metavar="N")],
    file: Annotated[
        Path | None, typer.Argument(help="Grade this file. Default: the exercise's own file in this folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the cases of an earlier verdict again.")] = None,
    lang: Lang = None,
) -> None:
    """Grade an answer on fresh random cases, in a process of its own, and say in words what is wrong."""
    from tightgrad_lab.exercises import check as grade
    from tightgrad_lab.exercises import sheet

    asked = sheet(number)
    path = file if file is not None else Path(f"{asked.name}.py")
    if not path.is_file():
        raise ArgumentError(
            f"{path} is not a file; name your answer (`tightgrad exercises check {number} FILE`), or write the starter "
            "files with `tightgrad exercises start DIR` and check in that folder."
        )
    language = _language(lang, _language_of(path))
    verdict = grade(number, path, seed)
    _print(verdict, asked, path, language)
    if not verdict.passed:
        raise typer.Exit(WRONG)


def _language(asked: str | None, otherwise: "Language") -> "Language":
    from tightgrad_lab.exercises.catalogue import LANGUAGES

    if asked is None:
        return otherwise
    if asked not in LANGUAGES:
        raise ArgumentError(f"--lang {asked} is no language of the exercises; use zh or en.")
    return "zh" if asked == "zh" else "en"


def _language_of(path: Path) -> "Language":
    """A starter file says its language in its first line."""
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return "zh" if "练习" in first else "en"


def _print(verdict: "Verdict", asked: "Sheet", path: Path, language: "Language") -> None:
    english = language == "en"
    title = asked.title(language)
    head = f"Exercise {verdict.number}, {title}" if english else f"练习 {verdict.number}，{title}"
    if verdict.passed:
        count = verdict.cases
        print(f"{head}: right in all {count} cases." if english else f"{head}：{count} 组数全部正确。")
    else:
        print(f"{head}: not yet right." if english else f"{head}：还不对。")
    for remark in verdict.remarks:
        print(f"  - {remark.en if english else remark.zh}")
    again = f"tightgrad exercises check {verdict.number} {path} --seed {verdict.seed}"
    print(f"  the same numbers again: {again}" if english else f"  用同一组数再判一次：{again}")
    if verdict.printed:
        print("  your program printed:" if english else "  程序打印的内容：")
        for line in verdict.printed.splitlines()[:10]:
            print(f"    {line}")
