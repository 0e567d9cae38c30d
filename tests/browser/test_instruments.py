"""The instruments: what the JavaScript computes is what the library computes, and real clicks and keys move them."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tightgrad as tg
from browser.opened import CHECK_SVG, CONTRAST, Opened
from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad.core.types import GradSpec
from tightgrad.feedback import ErrorFeedback
from tightgrad_lab import slides
from tightgrad_lab.experiments.instrument_data import PLANS, RANKS
from tightgrad_lab.instruments import NAMES
from tightgrad_lab.instruments.markup import data, words
from tightgrad_lab.planning.cost import Compute, PathCost, ddp_seconds, plan_seconds
from tightgrad_lab.planning.estimate import ActivationMemory, OptimizerMemory, estimate_memory
from tightgrad_lab.planning.link import Call, Link

pytestmark = pytest.mark.browser

SETTINGS = 200
DATA = data()
GRADIENTS = [torch.tensor(step) for step in DATA["gradient"]["steps"]]


@pytest.fixture
def built(reports: Callable[[int], Path]) -> Path:
    return reports(1)


@pytest.fixture
def page(kept: Callable[..., Opened], built: Path) -> Any:
    return kept(built / "book.html", 1400, "light").page


def told(page: Any, name: str, settings: list[dict[str, Any]]) -> list[Any]:
    """What the JavaScript says of each setting, as one text: Playwright takes long to read many numbers."""
    said = f"(settings) => JSON.stringify(settings.map((one) => InstrumentModel.{name}(one, INSTRUMENTS.data)))"
    found: list[Any] = json.loads(page.evaluate(said, settings))
    return found


def close(value: float, expected: float, relative: float = 1e-6) -> bool:
    return math.isclose(value, expected, rel_tol=relative, abs_tol=1e-12)


def test_clip_is_the_library_s(page: Any) -> None:
    draw = random.Random(1)
    gradient = GRADIENTS[0]
    norm, most = float(gradient.norm()), float(gradient.abs().max())
    settings = [
        {"way": way, "bound": draw.uniform(0.01, 1.2) * (norm if way == "norm" else most)}
        for way in draw.choices(("norm", "value"), k=SETTINGS)
    ]
    for setting, found in zip(settings, told(page, "clip", settings), strict=True):
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        if setting["way"] == "norm":
            tg.clip_grad_norm_([parameter], setting["bound"])
        else:
            tg.clip_grad_value_([parameter], setting["bound"])
        assert torch.allclose(torch.tensor(found["after"]), parameter.grad, rtol=1e-4, atol=1e-9)
        assert close(found["left"], float(parameter.grad.double().norm()), 1e-4)
        cosine = float(torch.cosine_similarity(gradient.double(), parameter.grad.double(), dim=0))
        assert abs(found["cosine"] - cosine) < 1e-4
        assert setting["way"] == "value" or found["degrees"] < 0.01


def test_accumulate_is_the_estimator_and_the_true_mean(page: Any) -> None:
    draw = random.Random(2)
    settings = [
        {"microBatch": draw.randint(1, 32), "count": draw.randint(1, 16), "ranks": draw.randint(2, 16)}
        for _ in range(SETTINGS)
    ]
    memory = DATA["memory"]
    parameters = [torch.empty(numel, device="meta", requires_grad=True) for numel in memory["numels"]]
    optimizer = OptimizerMemory(memory["state_nbytes"], memory["step_nbytes"], memory["steps_all"])
    activations = ActivationMemory(memory["one_nbytes"], memory["samples"], memory["nbytes"])
    for setting, found in zip(settings, told(page, "accumulate", settings), strict=True):
        size, count = setting["microBatch"], setting["count"]
        for key, samples in (("memory", size), ("whole", size * count)):
            estimate = estimate_memory(parameters, micro_batch=samples, activations=activations, optimizer=optimizer)
            assert abs(found[key]["total"] - estimate.total) <= 2
            assert found[key]["parameters"] == estimate.parameters
        lines = torch.tensor(DATA["lines"][: size * count], dtype=torch.float64)
        tokens, losses = lines.view(count, size, 2).unbind(2)
        means = (tokens * losses).sum(1) / tokens.sum(1)
        assert found["tokens"] == tokens.sum(1).int().tolist()
        assert close(found["perToken"], float((tokens * losses).sum() / tokens.sum()))
        assert close(found["perMicroBatch"], float(means.mean()))
        assert close(found["perLine"], float(losses.mean()))
        assert close(found["heaviest"], float(tokens.sum() / (count * tokens.sum(1).min())))
        nbytes = all_reduce_nbytes(4 * sum(memory["numels"]), setting["ranks"])
        assert (found["sent"], found["sentEvery"]) == (nbytes, count * nbytes)
        each = memory["seconds_per_micro_batch"] + size * memory["seconds_per_sample"]
        assert close(found["seconds"], count * each + memory["seconds_per_step"])


def library_steps(count: int, bits: int, feedback: bool) -> list[dict[str, Any]]:
    """The same with the library's codecs and its error feedback."""
    numel = GRADIENTS[0].numel()
    values = Cast("float32") if bits == 32 else IntBlock(bits, block_size=64)
    codec = values if count == numel else TopK(count / numel, values=values)
    state: dict[str, Any] = {}
    meant, arrived = torch.zeros(numel, dtype=torch.float64), torch.zeros(numel, dtype=torch.float64)
    rows = []
    for gradient in GRADIENTS:
        sent: dict[str, Any] = {}

        def send(grads: dict[str, torch.Tensor], sent: dict[str, Any] = sent) -> Any:
            payload = codec.encode(grads["w"], GradSpec.of("w", grads["w"]), torch.Generator())
            sent["nbytes"], sent["total"] = payload.nbytes, codec.decode(payload)
            return tg.core.types.Reduced(total={"w": sent["total"]}, transmitted={"w": sent["total"]})

        wanted = {"w": gradient.clone()}
        if feedback:
            state = dict(ErrorFeedback().reduce_(wanted, state, send).state)
        else:
            send(wanted)
        meant, arrived = meant + gradient.double(), arrived + sent["total"].double()
        rows.append({**sent, "error": float((meant - arrived).norm() / meant.norm())})
        rows[-1]["residual"] = state["residual"]["w"] if feedback else gradient - sent["total"]
    return rows


def test_compress_is_the_codecs_with_feedback(page: Any) -> None:
    draw = random.Random(3)
    settings = [
        {"count": draw.randint(1, 64), "bits": draw.choice((2, 4, 8, 32)), "feedback": draw.random() < 0.5}
        for _ in range(SETTINGS - 1)
    ]
    settings.append({"count": 64, "bits": 2, "feedback": True})
    for setting, found in zip(settings, told(page, "compress", settings), strict=True):
        for own, expected in zip(found, library_steps(**setting), strict=True):
            assert own["nbytes"] == expected["nbytes"]
            assert torch.allclose(torch.tensor(own["sent"], dtype=torch.float32), expected["total"], rtol=1e-6, atol=0)
            assert torch.allclose(
                torch.tensor(own["residual"], dtype=torch.float32), expected["residual"], rtol=1e-5, atol=1e-9
            )
            assert abs(own["error"] - expected["error"]) < 1e-6


def calls_of(name: str, parameters: int, ranks: int) -> tuple[Call, ...]:
    """The collectives of a plan, with the bytes that its codec's own layout has."""
    codec = {"bf16": Cast("bfloat16"), "int8": IntBlock(8), "top1": TopK(0.01, values=IntBlock(8))}[name]
    numel = 10**7
    each = sum(part.nbytes for part in codec.layout(GradSpec("w", (numel,), numel, torch.float32))) / numel
    if name == "top1":
        return (Call("all_gather", round((ranks - 1) * each * parameters)),)
    part = round((ranks - 1) * each * parameters / ranks)
    return (Call("all_to_all", part), Call("all_gather", part))


def test_link_is_the_cost_model(page: Any) -> None:
    draw = random.Random(4)
    settings = [
        {
            "parameters": round(10 ** draw.uniform(6, 10)),
            "ranks": draw.randint(2, 64),
            "backward": 10 ** draw.uniform(-2, 1),
            "bitsPerSecond": 10 ** draw.uniform(7, 12),
            "faster": draw.choice((1, 10, 100, 1000)),
            "latency": 5e-5,
        }
        for _ in range(SETTINGS)
    ]
    pays = 0
    for setting, found in zip(settings, told(page, "link", settings), strict=True):
        rows = {row["name"]: row for row in found}
        parameters, ranks = setting["parameters"], setting["ranks"]
        compute = Compute(setting["backward"] / 2, setting["backward"], 0.0)

        def seconds(name: str, speed: float, setting: dict[str, Any] = setting, compute: Compute = compute) -> float:
            link = Link(setting["latency"], speed / 8)
            if name == "dense":
                return ddp_seconds(compute, [setting["parameters"] // 24] * 24, setting["ranks"], link)
            path = next(path for path in DATA["paths"] if path["name"] == name)
            coding = setting["parameters"] * (path["seconds"] + path["seconds_per_rank"] * setting["ranks"])
            calls = calls_of(name, setting["parameters"], setting["ranks"])
            return plan_seconds(compute, PathCost(coding / setting["faster"], calls), setting["ranks"], link)

        assert rows["dense"]["nbytes"] == all_reduce_nbytes(4 * 24 * (parameters // 24), ranks)
        for name, row in rows.items():
            assert close(row["seconds"], seconds(name, setting["bitsPerSecond"]), 1e-4), name
            if name != "dense" and 1e6 < row["breakEven"] < 9e12:
                pays += 1
                there = row["breakEven"]
                assert seconds(name, there / 1.01) < seconds("dense", there / 1.01)
                assert seconds(name, there * 1.01) > seconds("dense", there * 1.01)
            elif name != "dense" and row["breakEven"] == 0:
                assert seconds(name, 1e6) >= seconds("dense", 1e6)
    assert pays > SETTINGS


@pytest.mark.parametrize("name", PLANS)
def test_bytes_of_a_plan_are_those_that_a_run_counted(name: str) -> None:
    path = next(path for path in DATA["paths"] if path["name"] == name)
    for ranks in RANKS:
        modelled = sum(call.nbytes for call in calls_of(name, DATA["num_parameters"], ranks))
        assert close(path["wire_bytes"][str(ranks)], modelled, 0.02)
    assert {call.operation for call in calls_of(name, 10**6, 4)} <= set(path["operations"])


@pytest.mark.parametrize(
    ("language", "width", "scheme"),
    [
        ("en", 380, "dark"),
        ("zh", 1400, "light"),
        pytest.param("en", 1400, "light", marks=pytest.mark.slow),
        pytest.param("zh", 380, "dark", marks=pytest.mark.slow),
    ],
)
def test_they_stand_whole_in_the_book(
    kept: Callable[..., Opened], built: Path, language: str, width: int, scheme: str
) -> None:
    opened = kept(built / ("book.html" if language == "en" else "book.zh.html"), width, scheme)
    page = opened.page
    assert opened.complaints == []
    assert page.locator(".instrument").count() == len(NAMES)
    assert page.evaluate(CHECK_SVG) == []
    assert page.evaluate(CONTRAST) == []
    for name in NAMES:
        place = page.locator(f"#instrument-{name}")
        assert place.locator(".try").inner_text() == words(language)[f"{name}.try"]
        box, drawing = place.bounding_box(), place.locator("svg").bounding_box()
        assert box["x"] <= drawing["x"]
        assert drawing["x"] + drawing["width"] <= box["x"] + box["width"]
        assert "published/instruments.json" in place.locator(".source").inner_text()
    assert "undefined" not in page.locator("#instrument-link").inner_text()
    assert not re.search(r"NaN|undefined|\{\w+\}", " ".join(page.locator(".instrument").all_inner_texts()))


def value(page: Any, name: str, key: str) -> str:
    """What the instrument says under a heading."""
    found: str = page.locator(f"#instrument-{name} dl div", has_text=words("zh")[f"{name}.{key}"]).first.inner_text()
    return found


def test_clicks_keys_and_drags_move_them_on_the_slides(chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    slides.build(tmp_path / "runs", tmp_path)
    opened = Opened(chromium, tmp_path / "slides.zh.html", 1280, "light", 720)
    page = opened.page
    try:
        page.wait_for_function("document.documentElement.dataset.ready === 'true'")
        page.evaluate("location.hash = '#/sclip'")
        page.wait_for_function("Reveal.getCurrentSlide().id === 'sclip'")
        assert "0.0°" in value(page, "clip", "angle")
        page.locator("#instrument-clip input[value=value]").check()
        before = value(page, "clip", "angle")
        assert "0.0°" not in before
        page.locator("#instrument-clip-share").press("ArrowLeft")
        assert page.evaluate("Reveal.getCurrentSlide().id") == "sclip"  # the key is the slider's, not the deck's
        assert page.locator("#instrument-clip output").inner_text() == "49 %"
        assert value(page, "clip", "angle") != before
        drawing = page.locator("#instrument-clip svg").bounding_box()
        page.mouse.move(drawing["x"] + 0.8 * drawing["width"], drawing["y"] + 60)
        page.mouse.down()
        page.mouse.move(drawing["x"] + 0.8 * drawing["width"], drawing["y"] + 100, steps=4)
        page.mouse.up()
        assert page.locator("#instrument-clip output").inner_text() not in ("49 %", "50 %")
        assert page.evaluate("Reveal.getCurrentSlide().id") == "sclip"

        page.evaluate("location.hash = '#/scompress'")
        page.wait_for_function("Reveal.getCurrentSlide().id === 'scompress'")
        errors = []
        for _ in range(2):
            errors.append(float(re.search(r"([\d.]+) %", value(page, "compress", "error")).group(1)))
            page.locator("#instrument-compress-feedback").click()
        assert errors[0] < errors[1]

        page.evaluate("location.hash = '#/slink'")
        page.wait_for_function("Reveal.getCurrentSlide().id === 'slink'")
        best = "text.best"
        page.locator("#instrument-link-bitsPerSecond").press("Home")
        assert words("zh")["link.top1"] in page.locator(f"#instrument-link {best}").text_content()
        page.locator("#instrument-link-bitsPerSecond").press("End")
        assert words("zh")["link.dense"] in page.locator(f"#instrument-link {best}").text_content()
        assert page.locator("#instrument-link-bitsPerSecond").get_attribute("aria-valuetext").endswith("Tbit/s")
        assert opened.complaints == []
    finally:
        page.close()


def test_a_finger_drags_the_bound(chromium: Any, built: Path) -> None:
    context = chromium.new_context(viewport={"width": 380, "height": 800}, has_touch=True)
    page = context.new_page()
    try:
        page.goto((built / "chapter1.zh.html").as_uri())
        page.evaluate(
            "document.querySelector('#instrument-clip svg').scrollIntoView({ block: 'center', behavior: 'instant' })"
        )
        drawing = page.locator("#instrument-clip svg").bounding_box()
        page.touchscreen.tap(drawing["x"] + 60, drawing["y"] + 180)
        assert page.locator("#instrument-clip output").inner_text() != "50 %"
    finally:
        context.close()


def test_both_languages_have_the_same_words_and_the_font_draws_them() -> None:
    assert words("en").keys() == words("zh").keys()
    for key, text in words("en").items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", words("zh")[key])), key
    assert json.dumps(DATA, allow_nan=False)
