"""Find sentences of the kinds that a reader has to read twice, in the docs, the book and the texts of the command line.

    python tools/check_prose.py

A rule is a pattern with what to write instead. Code and targets of links are left out. A sentence that is meant as it
stands, such as a quotation, has `<!-- prose: as it is -->` in its paragraph.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKDOWN = ("README*.md", "CONTRIBUTING.md", "docs/**/*.md", "packages/**/*.md", "src/tightgrad_lab/**/*.md")
MARKDOWN += ("examples/notebooks/src/*.md",)
TEXTS = ("src/tightgrad_lab/report/texts/**/*.json",)
PROGRAMS = ("src/tightgrad_command/*.py", "src/tightgrad_lab/cli/**/*.py")
MOST_WORDS = 45
AS_IT_IS = "<!-- prose: as it is -->"

# Pattern, and what to write instead.
ENGLISH = (
    (r"\b(?:if|when|than|what|whether) (?:\w+ ){0,2}(?:is|are|was|were)[.;]", "end with what it is, not with 'is'"),
    (r"(?:^|[.;:] )(?:Made|Written) (?:from|by|of|with)\b", "a sentence with a subject: 'Generated from ...'"),
    (r"(?:^|[.;:] )Of (?:one|each|every|all) \w+,", "begin with the noun: 'Memory per rank', not 'Of one rank,'"),
    (r"\bif not given\b", "say the default: 'default: ...'"),
    (r"\bof (?:ours|theirs|then|now)\b", "our, their, at the time"),
    (r"\b(?:becomes?|became|for|comes? out) right\b|\bright (?:together|on their own|at scale)", "say 'correct'"),
    (r"\bby it\.", "name what 'it' is"),
    (r"\bneeds? (?:\w+ ){1,4}for that\b", "leave out 'for that'"),
    (r"\bin force\b", "valid"),
    (r"\babove all (?:in|of|on|for|when|where|because)\b", "most, especially"),
    (r"\bwhat(?:ever)? is behind\b", "the number after, the code behind"),
    (r"\bshall\b", "must, should, will"),
    (r"\bknowing that\b", "note that"),
    (r"\bwhat (?:everybody|everyone|one) (?:has|does|wants)\b", "name it: the default"),
    (r"\bthe (?:checkpoint|window|version|step|save|one) before (?:is|was|stays|has)\b", "the previous ..."),
    (r"\bowns? the (?:stretch|way|path)\b", "handles everything between"),
    (r"\b(?:minutes|hours|seconds|bytes|runs|rows) in all(?=[.,;)]|$)", "a total of"),
    (r"\balong a straight line\b", "linearly"),
    (r"\bforgets? (?:\w+ )?gradients?\b", "drop, discard"),
    (r"\b(?:is|are) at hand\b|\bat hand\b", "cached, available"),
    (r"\b[Nn]amed(?: and|,) [Cc]ured\b", "diagnosed and fixed"),
    (r"\bone and the same\b|\bthe same twice\b", "the same"),
    (r"\bpieces of text\b", "sequences"),
    (r"\b(?:that|which) (?:nine|three|two) (?:\w+ )?out of (?:ten|four|three)\b", "the 90th percentile"),
    (r"\bnothing to gain\b", "say what does not become faster"),
)  # fmt: skip
CHINESE = (
    (r"由实测的各行", "由……自动生成"),
    (r"差到超过", "显著低于"),
    (r"(?:^|。)这样做只", "写出主语"),
    (r"(?:^|。)尤其如此", "写出主语"),
    (r"折入优化器", "融合进优化器"),
    (r"就内存(?:表决|商定)|商定 ?N", "确认内存是否够用；汇总全局权重 N"),
    (r"数据到头", "数据已读完"),
    (r"较密的开头", "预热期密度较高的几轮"),
    (r"两次传送的编码|编码要编码", "两阶段（two-shot）归约要编码两次"),
    (r"诊断命名|被命名", "正确诊断"),
    (r"(?:最好的|各种|一个)简单方法", "基线"),
    (r"正确的尺度", "正确的数值范围"),
    (r"到达的值比", "收到的值"),
    (r"束宽", "束搜索（beam）"),
    (r"常数预热", "恒定预热"),
    (r"批次 ?\d{2,}", "批大小"),
    (r"参数树", "随机张量集合"),
    (r"(?:被裁剪的?|平常的|普通的|更新的)步子|步子被裁剪|步子为", "被裁剪的步数占比；步；更新量"),
    (r"动量校正", "动量修正"),
    (r"动量掩码", "掩蔽"),
    (r"盈亏平衡", "平衡点"),
    (r"比例系数", "缩放系数"),
    (r"交互作用", "交互效应"),
    (r"离群批次|异常样本", "异常批次"),
    (r"有效批次|(?<![微大小])批次 ?\{|小批(?!次|量)", "有效批大小；批大小；小批次"),
    (r"(?<![\w.-])[Nn]otebooks?(?![\w/-])", "笔记本"),
)


def main() -> None:
    """Print what the rules find; exit with 1 if anything."""
    found = [finding for path, paragraph in paragraphs(ROOT) for finding in findings(path, paragraph)]
    print("\n".join(found) or "prose: nothing found")
    sys.exit(bool(found))


def paragraphs(root: Path) -> Iterator[tuple[str, str]]:
    """Yield where it stands, and the text, of every paragraph that a user reads."""
    for kinds, split in ((MARKDOWN, _markdown), (TEXTS, _json), (PROGRAMS, _strings)):
        for path in sorted(path for kind in kinds for path in root.glob(kind)):
            for paragraph in split(path.read_text(encoding="utf-8")):
                yield path.relative_to(root).as_posix(), paragraph


def findings(path: str, paragraph: str) -> Iterator[str]:
    """Yield a line for each rule that a paragraph breaks."""
    if AS_IT_IS in paragraph:
        return
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`|\$[^$]*\$", "`x`", paragraph))
    plain = " ".join(plain.split()).strip("-*| ")
    chinese = re.search(r"[\u4e00-\u9fff]", plain)
    for pattern, instead in CHINESE if chinese else ENGLISH:
        for match in re.finditer(pattern, plain):
            around = plain[max(0, match.start() - 40) : match.end() + 20]
            yield f"{path}: '{match[0].strip()}' in '...{around}...': {instead}"
    for sentence in re.split(r"(?<=[.!?])\s|[;:|]\s", plain):
        if not chinese and len(sentence.split()) > MOST_WORDS:
            yield f"{path}: a sentence of {len(sentence.split())} words: '{sentence[:80]}...': make two of it"


def _markdown(text: str) -> list[str]:
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.) ?)", text)


def _json(text: str) -> Iterator[str]:
    waiting = [json.loads(text)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list | dict):
            waiting += one.values() if isinstance(one, dict) else one


def _strings(code: str) -> list[str]:
    return [n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


if __name__ == "__main__":
    main()
