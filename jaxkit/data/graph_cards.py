"""The cards of graphs: Zachary's club, the digits' neighbours, PPNP's collection, and Planetoid's fixed splits."""

from __future__ import annotations

from jaxkit.data.records import Card, File

_RAW = "https://raw.githubusercontent.com"
_PPNP = f"{_RAW}/gasteigerjo/ppnp/8514e4dc2c5f1e3047ad915f6a5701c24c9d94dd/ppnp/data"
_BENCHMARK = f"{_RAW}/shchur/gnn-benchmark/1e72912a0810cdf27ae54fd589a3b43358a2b161/data/npz"
_PLANETOID = f"{_RAW}/tkipf/gcn/39a4089fe72ad9f055ed6fdb9746abdcfebc4d81/gcn/data"

_CITESEER = "C. L. Giles, K. D. Bollacker and S. Lawrence, CiteSeer: an automatic citation indexing system, DL, 1998"
_CORA = (
    "A. K. McCallum, K. Nigam, J. Rennie and K. Seymore, Automating the construction of internet portals with machine "
    "learning, Information Retrieval 3, 2000"
)
_SEN = "P. Sen, G. Namata, M. Bilgic et al., Collective classification in network data, AI Magazine 29(3), 2008"
_PUBMED = "G. Namata, B. London, L. Getoor and B. Huang, Query-driven active surveying, MLG, 2012"
_EMBEDDING = "A. Bojchevski and S. Günnemann, Deep Gaussian embedding of graphs, ICLR, 2018"
_PITFALLS = "O. Shchur, M. Mumme, A. Bojchevski and S. Günnemann, Pitfalls of GNN evaluation, arXiv:1811.05868, 2018"
_PREDICT = "J. Gasteiger, A. Bojchevski and S. Günnemann, Predict then propagate, ICLR, 2019"
_YANG = (
    "Z. Yang, W. W. Cohen and R. Salakhutdinov, Revisiting semi-supervised learning with graph embeddings, ICML, 2016"
)

_GITS_SUM = (
    "its sum is git's blob id, which its repository publishes, not a sha256; rows and features are those published"
)
_PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class_{i}" for i in range(count))


def _npz(name: str, address: str, sha256: str = "", git_blob: str = "") -> tuple[File, ...]:
    return (File(f"adagcn/{name}.npz", sha256, (f"{address}/{name}.npz",), git_blob=git_blob),)


def _planetoid(name: str, features: int, nodes: int, classes: int, citation: str, note: str, sums: list[str]) -> Card:
    """A card of Planetoid's eight files; ``sums`` in the order of ``_PARTS``."""
    files = tuple(
        File(
            path=f"planetoid/ind.{name}.{part}",
            sha256=total if len(total) == 64 else "",
            urls=(f"{_PLANETOID}/ind.{name}.{part}",),
            git_blob=total if len(total) == 40 else "",
        )
        for part, total in zip(_PARTS, sums, strict=True)
    )
    return Card(
        name=f"planetoid_{name}",
        title=f"{name.capitalize()} with Planetoid's fixed split, {nodes:,} publications",
        task="node classification",
        shape=(features,),
        classes=_numbered(classes),
        rows={"all": nodes},
        source="https://github.com/tkipf/gcn, gcn/data",
        licence="MIT (tkipf/gcn)",
        citation=f"{_YANG}; {citation}",
        files=files,
        note=(
            "'split' is 0 train, 1 validation (500), 2 test (1000), -1 none; it runs over all components, so keep them "
            f"(standardize with largest_component=False); the classes have no names here{note}"
        ),
    )


GRAPH_CARDS = (
    Card(
        name="karate",
        title="Zachary's karate club, 34 nodes, 78 edges",
        task="node classification",
        shape=(34,),
        classes=("Mr. Hi", "Officer"),
        rows={"all": 34},
        source="networkx, networkx.karate_club_graph",
        licence="BSD-3-Clause (networkx)",
        citation="W. W. Zachary, An information flow model for conflict and fission in small groups, 1977",
        note="x holds nodes (one-hot), senders, receivers and weights, each edge in both directions; it has no split",
    ),
    Card(
        name="digits_knn",
        title="The 1,797 digits, each joined to its 5 nearest",
        task="node classification",
        shape=(64,),
        classes=tuple("0123456789"),
        rows={"all": 1797},
        source="scikit-learn, sklearn.datasets.load_digits; the edges are ours",
        licence="CC BY 4.0 (UCI); with scikit-learn, BSD-3-Clause",
        citation="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part)",
        note=(
            "the graph is ours and no published figure is for it: an edge from each digit to its 5 nearest others "
            "(Euclidean on the pixels; of equally near ones the first rows)"
        ),
    ),
    Card(
        name="citeseer",
        title="Citeseer, citations among 3,312 publications",
        task="node classification",
        shape=(3703,),
        classes=("AI", "Agents", "DB", "HCI", "IR", "ML"),
        rows={"all": 3312},
        source="https://github.com/gasteigerjo/ppnp, ppnp/data/citeseer.npz",
        licence="MIT (ppnp)",
        citation=f"{_CITESEER}; {_SEN}; {_PREDICT}",
        files=_npz("citeseer", _PPNP, "9c72e32115590d1e6b2701f7af490519c8b2948ade22ec513e262aac3e47f722"),
        note="the graph as stored, in 438 components; published figures are for the largest (2,110 nodes)",
    ),
    Card(
        name="cora_ml",
        title="Cora-ML, citations among 2,995 publications on machine learning",
        task="node classification",
        shape=(2879,),
        classes=(
            "Artificial_Intelligence/Machine_Learning/Case-Based",
            "Artificial_Intelligence/Machine_Learning/Theory",
            "Artificial_Intelligence/Machine_Learning/Genetic_Algorithms",
            "Artificial_Intelligence/Machine_Learning/Probabilistic_Methods",
            "Artificial_Intelligence/Machine_Learning/Neural_Networks",
            "Artificial_Intelligence/Machine_Learning/Rule_Learning",
            "Artificial_Intelligence/Machine_Learning/Reinforcement_Learning",
        ),
        rows={"all": 2995},
        source="https://github.com/gasteigerjo/ppnp, ppnp/data/cora_ml.npz",
        licence="MIT (ppnp)",
        citation=f"{_CORA}; {_EMBEDDING}; {_PREDICT}",
        files=_npz("cora_ml", _PPNP, "e3439bfd32c4a962d5c56a4f313793baee39181c208c90a3915b61183d3e1cda"),
        note="the graph as stored; published figures are for its largest connected component (2,810 nodes)",
    ),
    Card(
        name="pubmed",
        title="PubMed, citations among 19,717 publications on diabetes",
        task="node classification",
        shape=(500,),
        classes=_numbered(3),
        rows={"all": 19717},
        source="https://github.com/gasteigerjo/ppnp, ppnp/data/pubmed.npz",
        licence="MIT (ppnp)",
        citation=f"{_PUBMED}; {_EMBEDDING}; {_PREDICT}",
        files=_npz("pubmed", _PPNP, git_blob="e7dbba82dd4aaeff5a0e59b23d58158ced3ec42c"),
        note=_GITS_SUM,
    ),
    Card(
        name="ms_academic",
        title="MS Academic, co-authors among 18,333 computer scientists",
        task="node classification",
        shape=(6805,),
        classes=_numbered(15),
        rows={"all": 18333},
        source="https://github.com/gasteigerjo/ppnp, ppnp/data/ms_academic.npz",
        licence="MIT (ppnp)",
        citation=f"{_PITFALLS}; {_PREDICT}",
        files=_npz("ms_academic", _PPNP, git_blob="9bdd7da943d86b74297e8d32e99eb64245b52835"),
        note=_GITS_SUM,
    ),
    Card(
        name="cora",
        title="Cora, citations among 2,708 publications",
        task="node classification",
        shape=(1433,),
        classes=(
            "Case_Based",
            "Genetic_Algorithms",
            "Neural_Networks",
            "Probabilistic_Methods",
            "Reinforcement_Learning",
            "Rule_Learning",
            "Theory",
        ),
        rows={"all": 2708},
        source="https://github.com/shchur/gnn-benchmark, data/npz/cora.npz",
        licence="MIT (gnn-benchmark)",
        citation=f"{_CORA}; {_SEN}; {_PITFALLS}",
        files=_npz("cora", _BENCHMARK, "068e22d90c3849b4057dfb05851741428992af058efcd4e7ebb4186f3d581de2"),
        note="the graph as stored; its largest connected component has 2,485 nodes",
    ),
    _planetoid(
        "cora",
        1433,
        2708,
        7,
        f"{_CORA}; {_SEN}",
        "",
        [
            "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
            "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
            "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
            "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
            "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
            "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
            "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
            "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
        ],
    ),
    _planetoid(
        "citeseer",
        3703,
        3327,
        6,
        f"{_CITESEER}; {_SEN}",
        "; 15 nodes, which the files leave out, have neither features nor a label (-1)",
        [
            "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
            "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
            "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
            "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
            "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
            "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
            "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
            "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
        ],
    ),
    _planetoid(
        "pubmed",
        500,
        19717,
        3,
        _PUBMED,
        "; the sum of ind.pubmed.allx is git's blob id",
        [
            "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
            "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
            "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
            "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
            "3b86bccf08111c37c632a9dd8ab63db25ea76361",
            "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
            "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
            "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
        ],
    ),
)
