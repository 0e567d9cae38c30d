"""Labels beside crowded points: no overlap, no crossing, inside the frame."""

import itertools
import random

import pytest

from tightgrad_lab.report.drawing.callouts import place, spread_out

FRAME = (0.6, 0.6, 7.3, 4.2)
SIZE = (1.8, 0.31)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "clusters", [[1.2, 6.5], [1.2], [1.5, 2.7, 5.3, 6.4], [0.7, 1.3, 1.9, 2.5, 3.1, 4.0, 5.0, 6.9]]
)
def test_labels_of_crowded_points(seed: int, clusters: list[float]) -> None:
    random.seed(seed)
    spots = [(clusters[i % len(clusters)], random.uniform(2.4, 2.6)) for i in range(8)]
    places = place(spots, [SIZE] * 8, FRAME)
    boxes = []
    for found in places:
        left = found.x if found.right else found.x - SIZE[0]
        boxes.append((left, found.y - SIZE[1] / 2, left + SIZE[0], found.y + SIZE[1] / 2))
    for a, b in itertools.combinations(boxes, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
    for box in boxes:
        assert FRAME[0] <= box[0]
        assert box[2] <= FRAME[2]
        assert FRAME[1] <= box[1]
        assert box[3] <= FRAME[3]


def test_labels_keep_the_order_of_their_points() -> None:
    spots = [(1.0, y) for y in (2.0, 2.05, 2.01, 2.1)]
    places = place(spots, [SIZE] * 4, FRAME)
    assert sorted(range(4), key=lambda i: places[i].y) == sorted(range(4), key=lambda i: spots[i][1])


def test_a_lone_point_has_its_label_at_its_own_height() -> None:
    (found,) = place([(1.0, 2.0)], [SIZE], FRAME)
    assert found.y == pytest.approx(2.0)
    assert found.right


def test_a_point_at_the_right_edge_has_its_label_on_the_left() -> None:
    (found,) = place([(7.0, 2.0)], [SIZE], FRAME)
    assert not found.right


def test_spread_out_moves_nothing_that_has_room() -> None:
    assert spread_out([1.0, 2.0, 3.0], [0.3, 0.3, 0.3], 0.0, 4.0) == pytest.approx([1.0, 2.0, 3.0])


def test_spread_out_centres_a_crowd_on_its_points() -> None:
    middles = spread_out([2.0, 2.0, 2.0], [0.3, 0.3, 0.3], 0.0, 4.0)
    assert middles == pytest.approx([1.65, 2.0, 2.35])
    assert spread_out([0.0, 0.0], [0.3, 0.3], 0.0, 4.0) == pytest.approx([0.15, 0.5])
