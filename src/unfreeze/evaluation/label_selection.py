"""Which images to label next, from features: typical and diverse, or uncertain and diverse.

Pure functions of arrays. Both methods cluster with k-means, so that no two suggestions are alike.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

COMPONENTS = 64  # principal components that are clustered
CLUSTERS = 500  # most clusters, as in TypiClust: more have too few images to be typical of
NEIGHBOURS = 20  # nearest neighbours that typicality is measured by
SMALL_CLUSTER = 5  # images below which a cluster comes last: outliers
POOL = 10  # uncertain images to choose from, as a multiple of the budget
PER_CLASS = 4  # labels of each class from which on `pick_uncertain` is as good (docs/RESULTS.md)
LITTLE_GAIN = 25  # labels of each class from which on random images are about as good (the same)
_LLOYD = 4 * 10**8  # multiplications of one pass over the data, from which mini-batches are used

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
Alike = Callable[[int], Mask]  # mask [N] of an image's duplicates, itself included


def clustering_space(features: Floats, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Features [N, D], centred and scaled to unit length: float32 [N, D].

    Centred because features behind a ReLU all point the same way. If N and D are above 64, only
    the first 64 principal components are returned, [N, 64].
    """
    centred = features.astype(np.float32) - features.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (centred / np.maximum(norms, 1e-12)).astype(np.float32)
    if min(unit.shape) <= COMPONENTS:
        return unit
    with threadpool_limits(1):  # threads add in any order
        reduced: npt.NDArray[np.float32] = PCA(COMPONENTS, random_state=seed).fit_transform(unit)
    return reduced


def random_order(count: int, *, seed: int) -> Positions:
    """A random order of `count` positions, from the seed alone."""
    return np.random.default_rng(seed).permutation(count)


class Picker:
    """Collects picks [budget] in order, none of them a duplicate of an earlier one.

    `free` [N]: images that may be picked; `alike`: the duplicates of an image.
    """

    def __init__(self, free: Mask, budget: int, alike: Alike) -> None:
        self.free, self.budget, self.alike = free.copy(), budget, alike
        self.picks = list[int]()

    def first_free(self, ranked: Positions) -> bool:
        """Pick the first free image of `ranked`; False if there is none, or no budget."""
        allowed = ranked[self.free[ranked]]
        if len(self.picks) >= self.budget or not len(allowed):
            return False
        pick = int(allowed[0])
        self.picks.append(pick)
        self.free &= ~self.alike(pick)
        self.free[pick] = False
        return True

    def fill(self, ranked: Positions) -> None:
        """Pick free images in the order of `ranked`."""
        while self.first_free(ranked):
            pass


def pick_typical(space: Floats, labelled: Mask, picker: Picker, *, seed: int) -> None:
    """TypiClust (Hacohen et al. 2022, arXiv 2202.02794): the most typical image of each cluster.

    `space` [N, D]: where distances are measured; `labelled` [N]: images that have a label.
    k-means with as many clusters as labels and budget together, 500 at most. Clusters take turns:
    those with fewer labels first, then larger ones; those below 5 images last. Typical is what has
    the smallest mean distance to its 20 nearest neighbours in the cluster (half of it, if smaller).
    """
    count = min(int(labelled.sum()) + picker.budget, CLUSTERS, len(space))
    clusters = clusters_of(space, count, seed)
    sizes = np.bincount(clusters, minlength=count)
    labels = np.bincount(clusters[labelled], minlength=count)
    turns = np.lexsort((-sizes, labels, sizes < SMALL_CLUSTER))
    members = {turn: _most_typical_first(space, clusters, turn) for turn in turns.tolist()}
    before = -1
    while before < len(picker.picks):  # until the budget is spent, or all are picked
        before = len(picker.picks)
        for turn in turns.tolist():
            picker.first_free(members[turn])


def _most_typical_first(space: Floats, clusters: Positions, cluster: int) -> Positions:
    """The members of a cluster, those in the densest places first."""
    members = np.flatnonzero(clusters == cluster)
    if len(members) < 2:
        return members
    count = min(NEIGHBOURS, max(1, len(members) // 2))
    # without queries, an image is not its own neighbour
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(space[members])
    with threadpool_limits(1):
        distances, _ = search.kneighbors()
    return members[np.argsort(distances.mean(axis=1), kind="stable")]


def pick_uncertain(space: Floats, uncertainty: Floats, picker: Picker, *, seed: int) -> None:
    """Uncertain and diverse images, the most uncertain first.

    `uncertainty` [N]. Of the ten times as many free images as the budget that are the most
    uncertain, k-means makes as many clusters as the budget, and the image nearest to the centre of
    each is picked: Citovsky et al. 2021 (arXiv 2107.14263) with k-means for their clustering.
    """
    ranked = np.argsort(-uncertainty, kind="stable")
    pool = ranked[picker.free[ranked]][: POOL * picker.budget]
    if not len(pool):
        return
    clusters = clusters_of(space[pool], min(picker.budget, len(pool)), seed)
    central = list(most_central_first(space[pool], clusters))
    central.sort(key=lambda members: -float(uncertainty[pool[members[0]]]))
    for members in central:
        picker.first_free(pool[members])
    picker.fill(ranked)


def most_central_first(space: Floats, clusters: Positions) -> Iterator[Positions]:
    """The members of each cluster, those nearest to its mean first."""
    for cluster in np.unique(clusters).tolist():
        members = np.flatnonzero(clusters == cluster)
        centre = space[members].mean(axis=0)
        distances = np.linalg.norm(space[members] - centre, axis=1)
        yield members[np.argsort(distances, kind="stable")]


def margin_uncertainty(probabilities: Floats) -> npt.NDArray[np.float64]:
    """1 - (largest - second largest probability) of each row of [N, C], C >= 2: 0..1."""
    top = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:]
    return 1.0 - (top[:, 1] - top[:, 0])


def clusters_of(space: Floats, count: int, seed: int) -> Positions:
    """The k-means cluster of each row, 0 to count - 1; mini-batches for large problems."""
    large = space.shape[0] * space.shape[1] * count > _LLOYD
    kind = MiniBatchKMeans if large else KMeans
    with threadpool_limits(1):
        count = min(count, len(np.unique(space, axis=0)))  # equal rows are one point
        model = kind(count, n_init=1, random_state=seed).fit(space)
    return np.asarray(model.labels_, np.int64)
