"""The embedded images are what they should be, and the model can take them."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch

from tightgrad_lab.cases import CASES, load_case
from tightgrad_lab.cases.image import DATA, ImageCase, Images
from tightgrad_lab.cases.image.models import ResNet20

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

    parts = torch.arange(len(test)).split(300)
    counts = [CASE.count(Constant(), CASE.batch(test, part), test, part) for part in parts]
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


def test_the_same_images_are_moved_and_mirrored():
    train, _ = CASE.load()
    colour = Images(train.pixels[:64].unsqueeze(-1).expand(-1, -1, -1, 3), train.labels[:64], train.mean, train.std)
    still = colour.standardised(torch.arange(64))
    moved = replace(colour, moved=True).standardised(torch.arange(64))
    assert moved.shape == still.shape == (64, 3, 28, 28)
    places = [(a, b) for a in range(9) for b in range(9)]
    padded = torch.nn.functional.pad(still, (4, 4, 4, 4))
    for image, wide in zip(moved, padded, strict=True):
        crops = (wide[:, a : a + 28, b : b + 28] for a, b in places)
        assert any(torch.equal(image, crop) or torch.equal(image, crop.flip(2)) for crop in crops)
    assert not torch.equal(moved, still)


def test_resnet20_is_the_published_one():
    model = ResNet20()
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
