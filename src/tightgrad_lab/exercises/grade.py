"""Grades a function: asks it the cases, compares, and looks for the slip that explains what is wrong."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.compare import comparable, difference, is_tensor, ratio, same, shown
from tightgrad_lab.exercises.load import Student, StudentError, raised
from tightgrad_lab.exercises.model import Case, Draw, Exam, Slip, copied
from tightgrad_lab.exercises.words import Words

MOST = 4
"""Sentences of one verdict: who is told everything at once mends nothing."""
GIVEN = 160
"""Characters of a case that a verdict shows."""


def grade(student: Student, exam: Exam, seed: int) -> tuple[int, list[Words]]:
    """Return the number of cases and what is wrong; nothing if the answer is right."""
    cases = exam.cases(Draw(seed))
    try:
        function = student.function(exam)
        founds = [_asked(student, function, exam, case, place) for place, case in enumerate(cases)]
    except StudentError as error:
        return len(cases), [error.words]
    where = student.place(exam.function)
    remarks = list(dict.fromkeys(_remarks(exam, cases, founds)))[:MOST]
    if any(words.STARTER.en in one.en for one in remarks):
        remarks = [words.STARTER]
    remarks = [one.after(where) for one in remarks]
    if not remarks:
        try:
            more = exam.more(function, Draw(seed))
        except (Exception, SystemExit) as error:
            more = raised(error, student)
        remarks = [more.after(where)] if more is not None else []
    return len(cases), remarks


def _asked(student: Student, function: Callable[..., Any], exam: Exam, case: Case, place: int) -> Any:
    given = copied(case)
    try:
        found = exam.ask(function, given)
    except StudentError as error:
        raise StudentError(error.words.after(student.place(exam.function))) from error
    except (Exception, SystemExit) as error:
        words_ = raised(error, student)
        raise StudentError(_with_case(words_, case, place).after(student.place(exam.function))) from error
    for index, (after, before) in enumerate(zip(given, case, strict=True)):
        if index not in exam.changes and not same_data(after, before):
            raise StudentError(words.MUTATED.of(place=index + 1).after(student.place(exam.function)))
    return found


def same_data(after: Any, before: Any) -> bool:
    """Whether an argument still holds what it held; what cannot be compared counts as unchanged."""
    if is_tensor(before):
        return is_tensor(after) and same(after, before, 0.0)
    if isinstance(before, Mapping):
        return after.keys() == before.keys() and all(same_data(after[key], before[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(after) == len(before) and all(
            same_data(one, other) for one, other in zip(after, before, strict=True)
        )
    if isinstance(before, (int, float, str)):
        return bool(after == before)
    return True


def _remembering(exam: Exam) -> Exam:
    """The same exam, which answers a case once for each set of slips: the search asks again for every entry."""
    known: dict[tuple[Any, ...], Any] = {}

    def right(*case: Any, **flags: Any) -> Any:
        key = (*map(id, case), *sorted(flags.items()))  # the cases stay while their answers are looked through
        if key not in known:
            known[key] = exam.right(*copied(case), **flags)
        return known[key]

    return replace(exam, right=right)


def _remarks(exam: Exam, cases: list[Case], founds: list[Any]) -> Iterator[Words]:
    """Say what is wrong, entry by entry; a slip that explains all answers comes before one that explains an entry."""
    exam = _remembering(exam)
    rights = [exam.right(*case) for case in cases]
    problems = [difference(found, right, exam.tolerance) for found, right in zip(founds, rights, strict=True)]
    if not any(problems):
        return
    if not all(isinstance(right, Mapping) for right in rights) or not all(isinstance(one, Mapping) for one in founds):
        yield from _field(exam, cases, founds, rights, "", set())
        return
    places = range(len(cases))
    likely = [one for one in exam.slips if all(_explains(exam, cases[at], founds[at], "", one.flags) for at in places)]
    exam = replace(exam, slips=(*likely, *(one for one in exam.slips if one not in likely)))
    told: set[Words] = set()
    for key in rights[0]:
        lacking = [key not in one for one in founds]
        if any(lacking):
            yield words.KEY.of(key=key)
            continue
        fitting = exam
        if isinstance(rights[0][key], bool):  # nearly every slip explains a yes or no
            own = (one for one in exam.slips if one in likely or _only(one, exam, cases, key))
            fitting = replace(exam, slips=tuple(own))
        yield from _field(fitting, cases, [one[key] for one in founds], [one[key] for one in rights], key, told)


def _only(slip: Slip, exam: Exam, cases: list[Case], key: str) -> bool:
    """Whether a slip changes one entry of the answers and no other."""
    for case in cases:
        right, wrong = exam.right(*case), exam.right(*case, **slip.flags)
        if not all(same(wrong[one], right[one], exam.tolerance) for one in right if one != key):
            return False
    return True


def _field(
    exam: Exam, cases: list[Case], founds: list[Any], rights: list[Any], key: str, told: set[Words]
) -> Iterator[Words]:
    """Say what is wrong with one entry of the answers, or with the answers as a whole; a slip is named once."""
    problems = [difference(found, right, exam.tolerance) for found, right in zip(founds, rights, strict=True)]
    wrong = [place for place, problem in enumerate(problems) if problem is not None]
    if not wrong:
        return
    label = Words(key, key) if key else None
    known = tuple(slip for slip in exam.slips if slip.words in told)
    if _slips(known, exam, cases, founds, key, wrong):
        return  # what was said explains this as well
    named = _slips(exam.slips, exam, cases, founds, key, wrong)
    if named:
        for one in [slip for slip in named if slip.words not in told]:
            told.add(one.words)
            yield one.words.after(label) if label else one.words
        return
    place = wrong[0]
    problem = problems[place] or words.STARTER
    if problem == words.STARTER:
        yield problem
        return
    constant = len(founds) > 1 and _all_alike(founds) and not _all_alike(rights)
    if constant and not told and comparable(founds[place], rights[place]):
        problem = words.CONSTANT
    elif (factor := ratio(founds, rights)) is not None and not 0.99 < factor < 1.01:
        said = words.SIGNS if abs(factor + 1) < 1e-6 else words.RATIO
        problem = said.of(ratio=f"{factor:.6g}", found=shown(founds[place]), right=shown(rights[place]))
    yield _with_case(problem.after(label) if label else problem, cases[place], place)


def _with_case(problem: Words, case: Case, place: int) -> Words:
    text = ", ".join(shown(one) for one in case)
    given = words.GIVEN.of(given=text if len(text) <= GIVEN else text[: GIVEN - 3] + "...")
    return Words(f"{problem.en} (case {place + 1}, {given.en})", f"{problem.zh}（第 {place + 1} 例，{given.zh}）")


def _all_alike(answers: list[Any]) -> bool:
    return all(same(one, answers[0], 0.0) for one in answers[1:])


def _slips(
    slips: tuple[Slip, ...], exam: Exam, cases: list[Case], founds: list[Any], key: str, wrong: list[int]
) -> tuple[Slip, ...]:
    """Return the slip, or the few slips, that lead to what was found in every case in which it is wrong."""
    for count in range(1, exam.together + 1):
        for chosen in combinations(slips, count):
            flags = {name: value for one in chosen for name, value in one.flags.items()}
            if len(flags) < sum(len(one.flags) for one in chosen):
                continue  # they exclude each other
            if all(_explains(exam, cases[place], founds[place], key, flags) for place in wrong):
                return chosen
    return ()


def _explains(exam: Exam, case: Case, found: Any, key: str, flags: Mapping[str, Any]) -> bool:
    try:
        wrong = exam.right(*case, **flags)
    except (ArithmeticError, ValueError, IndexError, RuntimeError):
        return False
    return same(found, wrong[key] if key else wrong, exam.tolerance)
