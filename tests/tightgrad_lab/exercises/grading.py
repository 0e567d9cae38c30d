"""Grades programs in this process, as the child does in its own."""

from tightgrad_lab.exercises.catalogue import Sheet
from tightgrad_lab.exercises.grade import grade
from tightgrad_lab.exercises.load import StudentError, load


def said(sheet: Sheet, source: str, folder, seed: int = 1) -> list[str]:
    """What the grader says of a program, in English; nothing if it is right."""
    path = folder / f"{sheet.name}.py"
    path.write_text(source, encoding="utf-8")
    try:
        return [remark.en for remark in grade(load(path), sheet.exam(), seed)[1]]
    except StudentError as error:
        return [error.words.en]
