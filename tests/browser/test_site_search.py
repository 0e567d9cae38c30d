"""Search on the documentation site, in a browser: a pasted message, a public name or a plain question finds its page.

The site is built and searched as a reader does it; every query must have the right page among the first three hits.
"""

import json
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MESSAGES = (
    "step() came after 1 of the window's 4 micro-batches. Every batch of `for batch in window:` needs one",
    "UsageError: step() needs a window; call it inside `for window in pipe.windows(loader):`",
    "max_norm=-1 must be above 0.",
    "density=2 must be above 0 and at most 1.",
    "the optimizer (SGD) holds none of the model's 2 trainable parameters, such as 'weight': no step would",
    'inf or NaN in the gradient of weight (6 entries on rank 0). Guard(on_nonfinite="skip") leaves such steps out.',
    'the number of samples cannot be taken for the weight of a batch: batch["labels"] of shape (2, 5) looks like',
    "a plan of version None cannot be read; this is version 1.",
    "static_graph does not accumulate",
    "ErrorFeedback leaves nothing behind",
)
NAMES = {
    "pipe.skip": "reference/tightgrad/#tightgrad.GradientPipeline.skip",
    "GradientPipeline.close": "reference/tightgrad/#tightgrad.GradientPipeline.close",
    "tg.save": "reference/tightgrad/#tightgrad.save",
    "tg.attach": "reference/tightgrad/#tightgrad.attach",
    "tg.Compress": "reference/tightgrad/#tightgrad.Compress",
    "max_norm": "reference/clip/#tightgrad.clip.GlobalNorm",
    "tg.clip.GlobalNorm": "reference/clip/#tightgrad.clip.GlobalNorm",
    "tg.reducers.PowerSGD": "reference/reducers/#tightgrad.reducers.PowerSGD",
    "tightgrad.ddp_comm_hook": "reference/tightgrad/#tightgrad.ddp_comm_hook",
    "record.wire_bytes": "reference/tightgrad/#tightgrad.StepRecord",
}
QUESTIONS = {
    "gradient accumulation DDP wrong average": "faq/#why-is-the-average-wrong-when-i-accumulate-gradients-under-ddp",
    "which compression for slow network": "faq/#which-compression-should-i-take-over-a-slow-network",
    "NaN gradients skip step": "faq/#can-i-skip-a-step-whose-gradients-are-nan-or-infinite",
    "resume training from checkpoint": "checkpoints/",
    "use with Hugging Face Trainer": "integrations/trainer/",
    "BatchNorm": "faq/#does-it-work-with-batchnorm",
    "ray train": "faq/#does-it-run-on-several-machines-under-slurm-or-ray-train",
    "which codec should I use": "how-to-choose/",
    "what is N": "faq/#what-is-n-the-number-that-gradients-are-divided-by",
    "what is N?": "faq/#what-is-n-the-number-that-gradients-are-divided-by",
    "which python versions": "supported-versions/",
    "top-k sparsification": "faq/#which-compression-should-i-take-over-a-slow-network",
}
CHINESE = {
    "如何选择": "zh/how-to-choose/",
    "损失对词元取平均": "zh/",
    "误差反馈": "zh/how-to-choose/",
    "学习率": "zh/examples/",
    "课程": "zh/course/",
    "检查点": "zh/",
    "裁": "zh/",
}
AUTHORS = {
    "GradSpec": "reference/core/#tightgrad.core.types.GradSpec",
    "tightgrad.core.wire.checked_tensors": "reference/core/#tightgrad.core.wire.checked_tensors",
    "GradNorm": "reference/core/#tightgrad.core.protocols.GradNorm",
}
MARKED = {
    '"attach"': "reference/tightgrad/#tightgrad.attach",
    "'max_norm'": "reference/clip/#tightgrad.clip.GlobalNorm",
    "`tg.save`": "reference/tightgrad/#tightgrad.save",
    "“Compress”": "reference/tightgrad/#tightgrad.Compress",
    "UsageError:": "reference/tightgrad/#tightgrad.UsageError",
    "Accumulate(": "reference/tightgrad/#tightgrad.Accumulate",
    "how do I skip a batch?": "faq/#how-do-i-skip-a-batch",
    "a codec of my own": "own-codec/",
    "title:doctor": "doctor/",
    '"resume checkpoint"': "checkpoints/",
}
"""Short queries with marks around them, and with words that say nothing."""
INPUT, META = "input.md-search__input", ".md-search-result__meta"
HITS = """() => [...document.querySelectorAll('.md-search-result__list > .md-search-result__item')].slice(0, 3).map(
    hit => [...hit.querySelectorAll('a.md-search-result__link')].map(link => link.getAttribute('href')))"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def search(site, chromium):
    """Type a query; return the addresses of the first three hits, each with those of its sections."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    address = f"http://127.0.0.1:{server.server_port}/"
    page.goto(address)
    page.locator(INPUT).click()
    page.wait_for_function("meta => /Type/.test(document.querySelector(meta).innerText)", arg=META, timeout=120_000)

    def found(query: str) -> list[list[str]]:
        page.locator(INPUT).fill("")
        page.keyboard.press("Backspace")
        page.wait_for_function(f"() => !({HITS})().length", timeout=60_000)
        page.locator(INPUT).fill(query[:-1])
        page.keyboard.type(query[-1])
        page.keyboard.press("End")  # a Chinese character comes without a key, and the search begins when one goes up
        page.wait_for_function("meta => /matching|No /.test(document.querySelector(meta).innerText)", arg=META)
        page.wait_for_timeout(500)  # hits are drawn after their number is
        hits = page.evaluate(HITS)
        return [[re.sub(r"^.*?//[^/]+/|\?.*?(?=#|$)", "", link) for link in links] for links in hits]

    yield found
    page.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("message", [*MESSAGES, f"'{MESSAGES[3]}'", '"step() needs a window"', f"“{MESSAGES[-1]}”"])
def test_a_pasted_message_finds_the_page_of_messages(search, message):
    hits = search(message)
    assert any(links[0].startswith("troubleshooting/") for links in hits), hits


@pytest.mark.parametrize(("query", "page"), [*NAMES.items(), *QUESTIONS.items(), *AUTHORS.items(), *MARKED.items()])
def test_names_and_questions_find_their_page(search, query, page):
    hits = search(query)
    assert any(page in links for links in hits), hits


@pytest.mark.parametrize(("query", "page"), CHINESE.items())
def test_a_question_in_chinese_finds_a_page_in_chinese(search, query, page):
    hits = search(query)
    assert any(link.startswith(page) for links in hits for link in links), hits


def test_no_internal_name_is_in_the_reference_as_it_is_shown(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = [entry["location"] for entry in index["docs"] if entry["location"].startswith("reference/")]
    for_authors = "reference/core/#tightgrad.core."  # which authors of methods import under that name
    places = [place for place in places if not place.startswith(for_authors) or "._" in place]
    assert len(places) > 150
    for place in places:
        assert not re.search(r"[.#]_|tightgrad\.(core|pipeline|adapters|plan|sync|accumulate)\.", place), place
