"""The embedded images are what they should be, and the model can take them."""

from importlib.resources import files

import pytest
import torch

from tightgrad_lab.cases import CASES, load_case
from tightgrad_lab.cases.image import DATA, ImageCase

CASE = ImageCase()


@pytest.mark.parametrize("name", CASES)
def test_every_case_loads_by_its_name(name):
    assert load_case(name).id == name


def test_images_are_balanced_and_complete():
    for images, per_class in zip(CASE.load(), (600, 100), strict=True):
        assert images.pixels.shape == (10 * per_class, 28, 28)
        assert images.pixels.dtype == torch.uint8
        assert torch.equal(images.labels.bincount(), torch.full((10,), per_class))


def test_batches_are_standardised():
    train, _ = CASE.load()
    pixels, labels = CASE.batch(train, torch.arange(len(train)))
    assert pixels.shape == (6000, 1, 28, 28)
    assert labels.dtype == torch.int64
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-3)
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)


def test_the_licence_notice_ships_with_the_data():
    notices = (files("tightgrad_lab") / "data" / "LICENSES.md").read_text(encoding="utf-8")
    assert DATA in notices
    assert "Zalando" in notices


def test_score_is_the_share_of_right_answers():
    _, test = CASE.load()

    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10).float()

    counts = [CASE.count(Constant(), CASE.batch(test, part)) for part in torch.arange(len(test)).split(300)]
    assert CASE.scores(torch.stack(counts).sum(0)) == {"accuracy": 0.1}


def test_gradient_does_not_depend_on_the_cut_into_micro_batches():
    train, _ = CASE.load()
    torch.manual_seed(0)
    model = CASE.model().double()

    def gradient(size):
        model.zero_grad()
        for part in torch.arange(32).split(size):
            pixels, labels = CASE.batch(train, part)
            (CASE.loss(model, (pixels.double(), labels)) * len(part) / 32).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.allclose(gradient(32), gradient(8), rtol=1e-10, atol=1e-12)
