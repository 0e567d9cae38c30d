"""What the course's outline puts under each of its headings besides the title: the paper."""

PAPERS = {
    "1.1": "pascanu",
    "1.2": "goodfellow",
    "2.1": "fairseq",
    "2.2": "micikevicius",
    "3.1": "dgc",
    "3.2": "qsgd",
    "4.1": "pascanu",
    "4.2": "tensorflow",
    "5.1": "fairseq",
    "5.2": "micikevicius",
    "6.1": "dgc",
    "6.2": "qsgd",
    "7.1": "goyal",
    "7.2": "lars",
    "8.1": "resnet",
    "8.2": "bert",
    "8.3": "lstm",
}
"""The role of each heading's paper in references.json."""
