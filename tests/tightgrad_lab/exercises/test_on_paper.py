"""The numbers that the task sheets give for the calculation on paper are those of the solution."""

import pytest

from tightgrad_lab.exercises.catalogue import sheet
from tightgrad_lab.exercises.load import load

G = [0.9, -0.1, 0.4, 0.0, -0.7, 0.2, 0.1, -0.25]
PAPER = {
    1: (([6, 8], 5), {"norm": 10, "factor": 0.5, "by_norm": [3, 4], "by_value": [5, 5], "cosine": 0.990}),
    4: (([[16, 2], [16, 1]], [[1, 5], [1, 9]]), {"right": 1.457, "mean_of_means": 4}),
    7: (([G] * 4, 2), {"residual": [0, -0.4, 0.8, 0, -0.7, 0.8, 0.4, 0]}),
    10: ((0.9, 0.95, 10, 2), {"mean": -0.1, "square": 5.95, "step": -0.041, "backwards": 1, "clipped": 0.653}),
    13: (
        (0.05, 1, 32, 512, 0.95),
        {"linear": 0.8, "root": 0.2, "limit": 40, "small": 0.440, "big": 0.2, "beta2": 0.440, "half_life": 432.4},
    ),
    16: (
        ([3, 0, -4, 0], 4, 256),
        {"low": [2.5, 0, -3.75, 0], "chance": [0.4, 0, 0.2, 0], "variance": 0.625, "bound": 1.5625, "density": 0.127},
    ),
    19: (
        (0.3, 2, 16, 1, 0.1, 5, 4, 4),
        {
            "one": 2.02,
            "many": 0.583,
            "factor_one": 0.495,
            "factor_many": 1,
            "steps": 50,
            "local": 0.5,
            "traffic": 0.0156,
        },
    ),
    22: (
        ([87, 88, 86], [87.5, 86.5, 87.6], 2.78, 0.6, 1, 100_000, 1000, 4, 8000, 128, 500),
        {
            "difference": 0.2,
            "halfwidth": 1.88,
            "seen": False,
            "seeds": 3,
            "sent": 600_000_000,
            "table": 4_096_000,
            "rows": 500,
        },
    ),
}


@pytest.mark.parametrize("number", PAPER)
def test_the_numbers_on_paper(number, tmp_path):
    path = tmp_path / "answer.py"
    path.write_text(sheet(number).solution("en"), encoding="utf-8")
    case, given = PAPER[number]
    found = load(path).module.answer(*case)
    for key, value in given.items():
        assert found[key] == pytest.approx(value, rel=0, abs=0.05 if key == "half_life" else 5e-3), key
    for language in ("en", "zh"):
        for value in given.values():
            if isinstance(value, float):
                assert f"{abs(value):g}" in sheet(number).task(language), value
