"""The names of figures as the field has them, and what each means in one sentence."""

from typing import NamedTuple


class Term(NamedTuple):
    """A figure: its name, what it means, and which way is better ("up", "down" or "")."""

    name: str
    meaning: str
    better: str = ""


# key of a record or a result -> what it is
FIGURES = {
    "knn_accuracy": Term(
        "k-NN accuracy",
        "share of labelled images whose class most of their nearest neighbours have, by features "
        "alone: nothing is trained",
        "up",
    ),
    "information": Term(
        "information",
        "how much the prototype of an image says about the image, of the most it could (mutual "
        "information over ln K): 0 where all images get the same prototype or none is certain, "
        "1 where each is certain and all prototypes are used alike",
        "up",
    ),
    "agreement": Term(
        "view agreement",
        "share of images whose two random crops get the same prototype",
        "up",
    ),
    "effective_rank": Term(
        "effective rank",
        "how many directions the backbone's features use (RankMe); near 1 all images look the "
        "same to the network",
        "up",
    ),
    "effective_rank_projected": Term(
        "effective rank, projected",
        "the same behind the projection head; below 1.5 counts as collapsed",
        "up",
    ),
    "feature_std": Term(
        "feature spread",
        "standard deviation of unit-length features: 0 where all are the same, 1 where they are "
        "spread evenly",
        "up",
    ),
    "code_entropy": Term(
        "code entropy",
        "how undecided an image's code (its share of each prototype) is: 0 one, 1 all alike",
    ),
    "usage_entropy": Term(
        "prototype usage",
        "how evenly the prototypes are used over all images: 1 is even",
        "up",
    ),
    "prototypes_in_use": Term(
        "prototypes in use", "prototypes that are the nearest one of at least one image", "up"
    ),
    "duplicate_prototypes": Term(
        "duplicate prototypes", "share of prototypes that nearly equal another one", "down"
    ),
    "alignment": Term(
        "alignment", "distance between the features of two crops of one image: 0 to 4", "down"
    ),
    "uniformity": Term(
        "uniformity",
        "how evenly features cover the sphere: 0 all in one place, below -2 spread out",
        "down",
    ),
    "loss_share": Term(
        "loss / ln K", "the loss as a share of what guessing scores: 1 is nothing learned", "down"
    ),
    "accuracy": Term("accuracy", "share of images whose predicted class is their label", "up"),
    "balanced_accuracy": Term(
        "balanced accuracy", "mean of the classes' recall: each class counts the same", "up"
    ),
    "macro_f1": Term(
        "macro-F1", "mean over classes of F1, the harmonic mean of precision and recall", "up"
    ),
    "top5": Term("top-5 accuracy", "share of images whose label is among the five likeliest", "up"),
    "loss": Term("cross-entropy", "mean of -ln of the probability given to the label", "down"),
    "calibration_error": Term(
        "calibration error",
        "how far stated probabilities are from the share that is right (ECE): 0 % is honest",
        "down",
    ),
}

SHARES = {  # shown in percent
    "knn_accuracy",
    "information",
    "agreement",
    "code_entropy",
    "usage_entropy",
    "duplicate_prototypes",
    "loss_share",
    "accuracy",
    "balanced_accuracy",
    "top5",
    "calibration_error",
}


def figure(key: str, value: float | None) -> str:
    """A figure's value for people: `37.2 %`, `133.6`, `-2.51`."""
    if value is None:
        return "-"
    if key in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if key == "prototypes_in_use" else f"{value:.3g}"
