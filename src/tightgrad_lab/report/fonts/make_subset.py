"""Makes NotoSansSC-subset.otf, the font of the report's figures.

    python make_subset.py [NotoSansCJK-Regular.ttc]

Needs fontTools. Takes the SC face of Noto Sans CJK (SIL OFL 1.1), keeps Latin, Greek, punctuation, arrows,
mathematics, CJK punctuation, GB2312 level 1 and every other character that the texts use; drops hinting and
layout features; renames the family so that it never shadows an installed Noto Sans.
"""

import argparse
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.ttLib import TTCollection  # type: ignore[import-untyped]

FAMILY = "TightGrad Sans SC"
HERE = Path(__file__).parent
BLOCKS = [
    (0x20, 0x7E),
    (0xA0, 0xFF),
    (0x391, 0x3C9),
    (0x2010, 0x2027),
    (0x2030, 0x203A),
    (0x2070, 0x209C),
    (0x2190, 0x2199),
    (0x2200, 0x22FF),
    (0x25A0, 0x25CF),
    (0x3000, 0x3017),
    (0xFF01, 0xFF5E),
]


def characters() -> set[int]:
    """Every code point that the subset keeps."""
    kept = {code for first, last in BLOCKS for code in range(first, last + 1)}
    for row in range(0xB0, 0xD8):  # GB2312 level 1
        for cell in range(0xA1, 0xFF):
            kept |= {ord(char) for char in bytes([row, cell]).decode("gb2312", errors="ignore")}
    texts, book, slides = HERE.parent / "texts", HERE.parent / "book", HERE.parents[1] / "slides" / "text"
    instruments = HERE.parents[1] / "instruments" / "text"
    written = (*texts.glob("*.json"), *texts.glob("pairs/*.json"), *book.glob("*/*.md"), *slides.iterdir())
    for path in (*written, *instruments.iterdir()):
        kept |= {ord(char) for char in path.read_text(encoding="utf-8")}
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ttc", nargs="?", default="/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
    source = Path(parser.parse_args().ttc)
    font = next(face for face in TTCollection(source).fonts if face["name"].getDebugName(4) == "Noto Sans CJK SC")
    options = subset.Options(
        hinting=False,
        desubroutinize=False,
        layout_features=["kern"],
        name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14],
        notdef_outline=True,
        drop_tables=["BASE", "VORG", "vhea", "vmtx", "DSIG"],
    )
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=sorted(characters()))
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 3, 4):
            record.string = FAMILY
        elif record.nameID == 6:
            record.string = FAMILY.replace(" ", "")
    target = HERE / "NotoSansSC-subset.otf"
    font.save(target)
    print(f"{target.name}: {len(font.getBestCmap())} characters, {target.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
