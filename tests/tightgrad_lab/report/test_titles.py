"""The titles of figures and tables are the course's, and no reader meets one title twice for different tables."""

import pytest

from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.texts import load

OUTLINE = {
    "clip_geometry": ("梯度裁剪示意图", "梯度裁剪的优缺点对比"),
    "temporal_order": ("梯度裁剪在RNN训练中的应用示意图", "梯度裁剪的应用场景对比"),
    "window_timeline": ("梯度累积示意图", "梯度累积的优缺点对比"),
    "accumulation_memory": ("梯度累积在大模型训练中的应用示意图", "梯度累积的应用场景对比"),
    "codec_gallery": ("梯度压缩示意图", "梯度压缩的优缺点对比"),
    "link_speeds": ("梯度压缩在分布式训练中的应用示意图", "梯度压缩的应用场景对比"),
    "loss_spikes": ("梯度裁剪在大模型训练中的作用示意图", "梯度裁剪的优缺点对比"),
    "clip_stages": ("梯度裁剪实现流程图", "梯度裁剪在不同框架中的实现对比"),
    "large_batches": ("梯度累积在大模型训练中的作用示意图", "梯度累积的优缺点对比"),
    "window_states": ("梯度累积实现流程图", "梯度累积在不同框架中的实现对比"),
    "accuracy_vs_bytes": ("梯度压缩在大模型训练中的作用示意图", "梯度压缩的优缺点对比"),
    "encode_timeline": ("梯度压缩实现流程图", "梯度压缩在不同框架中的实现对比"),
    "combinations": ("结合多种技术的训练策略示意图", "多种技术结合的优缺点对比"),
    "common_failures": ("常见问题及解决方案示意图", "实现中的常见问题与解决方案对比"),
    "image_case": ("图像分类任务中的梯度技术应用流程图", "图像分类任务中的技术效果对比"),
    "language_cases": ("自然语言处理任务中的梯度技术应用流程图", "自然语言处理任务中的技术效果对比"),
    "series_case": ("时间序列预测任务中的梯度技术应用流程图", "时间序列预测任务中的技术效果对比"),
}
"""Figures 1 to 17 and tables 1 to 17 as the outline of the course names them."""


def test_chinese_titles_are_the_outlines_word_for_word() -> None:
    texts = load("zh")
    found = {
        pair.name: (texts(f"pair.{pair.name}.figure"), texts(f"pair.{pair.name}.table"))
        for pair in sorted(PAIRS, key=lambda pair: pair.number)
    }
    assert list(found.items()) == list(OUTLINE.items())


@pytest.mark.parametrize("kind", ["figure", "table"])
def test_english_titles_differ_from_each_other(kind: str) -> None:
    found = [load("en")(f"pair.{pair.name}.{kind}") for pair in PAIRS]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_figure_has_one_sentence_that_says_what_it_shows(language: str) -> None:
    stop = "。" if language == "zh" else "."
    for pair in PAIRS:
        shows = load(language)(f"pair.{pair.name}.figure.shows")
        assert shows.endswith(stop)
        assert shows.count(stop) == 1, shows
