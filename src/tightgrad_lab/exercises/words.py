"""What a grader says, in both languages, and the sentences that every exercise shares."""

from typing import NamedTuple


class Words(NamedTuple):
    """One sentence in English and in Chinese."""

    en: str
    zh: str

    def of(self, **values: object) -> "Words":
        """Return the sentence with values filled in."""
        return Words(self.en.format(**values), self.zh.format(**values))

    def after(self, where: "Words") -> "Words":
        """Return the sentence behind the place that it speaks of."""
        return Words(f"{where.en}: {self.en}", f"{where.zh}：{self.zh}")


SYNTAX = Words(
    "line {line} is not Python: {reason}. The line reads: {text}",
    "第 {line} 行不是合法的 Python：{reason}。这一行是：{text}",
)
UNREADABLE = Words("the file is not text in UTF-8: {reason}", "文件不是 UTF-8 文本：{reason}")
RAISED = Words(
    "line {line} raises {kind}: {reason}. The line reads: {text}",
    "第 {line} 行出错，{kind}：{reason}。这一行是：{text}",
)
RAISED_OUTSIDE = Words("calling it raises {kind}: {reason}", "调用时出错，{kind}：{reason}")
EXITS = Words(
    "line {line} ends the program; a function returns its answer instead", "第 {line} 行结束了程序；函数应当返回答案"
)
PRINTS = Words(
    "the file prints an answer and defines no `{name}`: compute it in `def {name}(...)` and return the result",
    "文件只是打印答案，没有定义 `{name}`：请把计算写进 `def {name}(...)`，并用 return 返回结果",
)
MISSING = Words("the file defines no `{name}`", "文件没有定义 `{name}`")
MISSING_NEAR = Words(
    "the file defines no `{name}`; is it `{near}`, on line {line}?",
    "文件没有定义 `{name}`；是不是第 {line} 行的 `{near}`？",
)
NOT_A_FUNCTION = Words("`{name}` must be a function and is {kind}", "`{name}` 应当是函数，现在是 {kind}")
IMPORTS_GRADER = Words(
    "line {line} imports `{name}`, where the grader lives: write the answer yourself",
    "第 {line} 行导入了判题程序所在的 `{name}`：请自己写答案",
)
WITHOUT = Words(
    "line {line} uses `{name}`, which does the exercise for you: write it yourself",
    "第 {line} 行用了 `{name}`，等于让它替你做题：请自己实现",
)
REACHES = Words(
    "line {line} uses `{name}`, by which a program reaches its grader: no answer needs it",
    "第 {line} 行用了 `{name}`，程序可以借此伸手到判题程序里去：做题用不着它",
)
PATCHES = Words(
    "line {line} changes `{name}`, which the grader uses as well: leave libraries as they are",
    "第 {line} 行改动了 `{name}`，判题程序也要用它：不要改动库",
)
MUTATED = Words(
    "it changes its argument number {place}: work on a copy, the caller still needs the original",
    "它改动了第 {place} 个参数：请在副本上计算，调用者还要用原来的数据",
)
CONSTANT = Words(
    "it returns the same answer for every case: compute it from what is given",
    "无论给什么数，它都返回同一个答案：请用给定的数来计算",
)
NOTHING = Words("it returns None; is a `return` missing?", "它返回 None，是不是漏了 `return`？")
STARTER = Words("this is still the starter: replace `...` by your answer", "这还是起始文件：请把 `...` 换成你的答案")
KIND = Words("it should be {right} and is {found}", "应当是 {right}，现在是 {found}")
TENSOR = Words(
    "it returns a tensor; a float of Python was asked for, as `.item()` gives: a tensor may keep its whole graph alive",
    "返回的是张量；题目要的是 Python 的 float，用 `.item()` 即可：张量可能使整个计算图一直不被释放",
)
LENGTH = Words("it should hold {right} entries and holds {found}", "应当有 {right} 项，现在有 {found} 项")
SHAPE = Words("its shape should be {right} and is {found}", "形状应当是 {right}，现在是 {found}")
KEY = Words("the answer lacks the entry '{key}'", "答案里缺少 '{key}' 一项")
NOT_FINITE = Words(
    "it is {found}, expected {right}: look for a division by zero or a number out of range",
    "结果是 {found}，应为 {right}：请检查有没有除以零或超出范围的数",
)
ROUNDED = Words(
    "it is nearly right ({found}, expected {right}): a rounded number, float32, or a small term that is missing?",
    "几乎对了（{found}，应为 {right}）：是不是取了整、用了 float32，或者漏了一个小项？",
)
SIGN = Words("it has the wrong sign ({found}, expected {right})", "符号反了（{found}，应为 {right}）")
SIGNS = Words("every sign is wrong ({found}, expected {right})", "符号全反了（{found}，应为 {right}）")
RATIO = Words(
    "it is {ratio} times the right value in every case ({found}, expected {right})",
    "每种情形下都是正确值的 {ratio} 倍（{found}，应为 {right}）",
)
VALUE = Words("found {found}, expected {right}", "得到 {found}，应为 {right}")
GIVEN = Words("given {given}", "给定 {given}")
LOOP = Words(
    "it did not end within {seconds} seconds; it was at line {line}: {text}",
    "{seconds} 秒内没有结束；停在第 {line} 行：{text}",
)
LOOP_ELSEWHERE = Words("it did not end within {seconds} seconds", "{seconds} 秒内没有结束")
DIED = Words("the program ended with code {code} and left no result", "程序以代码 {code} 退出，没有留下结果")
WAITING = Words(
    "the processes wait for each other without end: all must make the same calls in the same order, idle ones too",
    "各进程互相等待，没有尽头：所有进程都要按同样的次序通信，空闲的也不例外",
)
