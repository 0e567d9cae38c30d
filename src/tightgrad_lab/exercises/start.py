"""Writes the folder of a student: task sheets, hints, starter files; for a teacher also solutions and marking notes."""

from pathlib import Path

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.exercises.catalogue import PATH, Language, Sheet, sheets

HINTS, TEACHER = "hints", "instructor"
_HEAD = {
    "en": "# Exercise {number}, {kind}: {title}. Grade it with: tightgrad exercises check {number}",
    "zh": "# 练习 {number}（{kind}）：{title}。判题命令：tightgrad exercises check {number}",
}
_README = {
    "en": """# Exercises: clipping, accumulation and compression

Twenty-four exercises, three for each chapter of the book: compute, find the bug, build. The sheet `NN_name.md` says
what is asked; you write your answer into `NN_name.py`. Grade it with

    tightgrad exercises check 7

in this folder. Each check draws fresh numbers, so a constant cannot pass; the seed that it prints repeats them. It
takes under a minute and says in words what is wrong. If you are stuck, read `hints/NN_name.md`.

Answers are your own work: `tightgrad` itself may be used in exercise 24 only, and nothing may reach into the grader.

Whoever wants to build the techniques from nothing takes these exercises in this order: {path}.

| Number | Chapter | Kind | Exercise |
|---|---|---|---|
{rows}
""",
    "zh": """# 练习：梯度裁剪、梯度累积与梯度压缩

共二十四题，每章三题：计算、找错、实现。题目在 `NN_name.md` 中，答案写进 `NN_name.py`。在本文件夹里运行

    tightgrad exercises check 7

即可判题。每次判题都换一组新的数，所以写死一个常数是通不过的；用打印出来的种子（`--seed`）可以重现同一组数。
判一题不到一分钟，错在哪里会用文字说明。做不下去时，看 `hints/NN_name.md` 里的提示。

答案要自己写：只有第 24 题可以用 `tightgrad` 本身，任何一题都不许去碰判题程序。

想从零开始把三种技术都搭一遍，可以按这个顺序做：{path}。

| 题号 | 章 | 类型 | 题目 |
|---|---|---|---|
{rows}
""",
}
_NOTES = {
    "en": """# Exercise {number}: {title}

{marking}

## What the grader recognises

{slips}
""",
    "zh": """# 练习 {number}：{title}

{marking}

## 判题程序认得的错误

{slips}
""",
}


def start(folder: Path, language: Language, *, instructor: bool = False) -> tuple[list[Path], list[Path]]:
    """Write the folder; return the files written, and those of the student that were there and were left alone.

    Args:
        folder: made if it does not exist.
        language: of the texts.
        instructor: also write solutions and marking notes.

    Raises:
        ArgumentError: the folder is a file, or cannot be written.
    """
    texts: dict[str, str] = {"README.md": _readme(language)}
    for one in sheets():
        texts[f"{one.name}.md"] = one.task(language) + "\n"
        texts[f"{one.name}.py"] = _head(one, language) + one.starter(language)
        texts[f"{HINTS}/{one.name}.md"] = f"# {one.title(language)}\n\n{one.hint(language)}\n"
        if instructor:
            texts[f"{TEACHER}/{one.name}.py"] = _head(one, language) + one.solution(language)
            texts[f"{TEACHER}/{one.name}.md"] = _notes(one, language)
    written, kept = [], []
    try:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
                kept.append(path)
            else:
                path.write_text(text, encoding="utf-8")
                written.append(path)
    except OSError as error:
        raise ArgumentError(f"The folder {folder} cannot be written: {error}; name another one.") from error
    return written, kept


def _readme(language: Language) -> str:
    rows = [f"| {one.number} | {one.chapter} | {one.kind(language)} | {one.title(language)} |" for one in sheets()]
    return _README[language].format(rows="\n".join(rows), path=", ".join(map(str, PATH)))


def _head(one: Sheet, language: Language) -> str:
    head = _HEAD[language].format(number=one.number, kind=one.kind(language), title=one.title(language))
    return head + "\n\n"


def _notes(one: Sheet, language: Language) -> str:
    spoken = [slip.words.en if language == "en" else slip.words.zh for slip in one.exam().slips]
    slips = "\n".join(f"- {words}" for words in spoken) or "-"
    return _NOTES[language].format(
        number=one.number, title=one.title(language), marking=one.marking(language), slips=slips
    )
