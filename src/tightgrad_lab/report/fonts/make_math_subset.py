"""Makes STIXMath-subset.otf, the font of the book's formulas.

    python make_math_subset.py STIXMath-Regular.otf

Needs fontTools. Takes STIX Math 1.1.1 (SIL OFL 1.1), keeps letters, Greek, digits, operators and the table of
mathematical constants; drops the rest, and renames the family so that it never shadows an installed font.
"""

import sys
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

FAMILY = "TightGrad Math"
BLOCKS = [
    (0x20, 0x7E),
    (0xA0, 0xFF),
    (0x2BC, 0x304),
    (0x391, 0x3F5),
    (0x2010, 0x2032),
    (0x210E, 0x211D),
    (0x2190, 0x21D2),
    (0x2200, 0x22FF),
    (0x2308, 0x230B),
    (0x23DE, 0x23DF),
    (0x27E8, 0x27E9),
    (0x1D400, 0x1D467),
    (0x1D538, 0x1D541),
    (0x1D6E2, 0x1D71B),
]


def main() -> None:
    font = TTFont(sys.argv[1])
    options = subset.Options(
        hinting=False,
        layout_features=["ssty", "kern"],
        name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14],
        notdef_outline=True,
        drop_tables=["FFTM", "DSIG"],
    )
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for first, last in BLOCKS for code in range(first, last + 1)])
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 3, 4):
            record.string = FAMILY
        elif record.nameID == 6:
            record.string = FAMILY.replace(" ", "")
    font.save(Path(__file__).with_name("STIXMath-subset.otf"))


if __name__ == "__main__":
    main()
