"""Standard names of metrics, and what each means in one sentence."""

from typing import NamedTuple


class Term(NamedTuple):
    """A metric: its name, what it means, and which way is better ("up", "down" or "")."""

    name: str
    meaning: str
    better: str = ""


# key in metrics.jsonl or a result -> term
METRICS = {
    "map": Term(
        "mAP",
        "mean over the classes of average precision: how far images with a label are ranked before "
        "those without it",
        "up",
    ),
    "f1_micro": Term("micro-F1", "F1 of all decisions together, at the chosen thresholds", "up"),
    "f1_macro": Term("macro-F1", "mean over the classes of F1, at the chosen thresholds", "up"),
    "miou": Term(
        "mIoU",
        "mean over the classes of intersection over union: pixels that are of a class and were "
        "predicted so, divided by those that are either, over all images at their own size",
        "up",
    ),
    "dice": Term(
        "Dice",
        "mean over the classes of the F1 score of their pixels",
        "up",
    ),
    "pixel_accuracy": Term(
        "pixel accuracy",
        "share of the pixels with the right class; high if one class fills the images",
        "up",
    ),
    "knn_accuracy": Term(
        "k-NN accuracy",
        "share of labelled images whose class is that of most of their nearest neighbours in "
        "feature space; nothing is trained",
        "up",
    ),
    "linear_accuracy": Term(
        "linear probe",
        "share of labelled images that a linear classifier on the features classifies correctly, "
        "each by one that was fitted without it (or on the training images, for a validation set)",
        "up",
    ),
    "information": Term(
        "information",
        "mutual information between image and prototype, divided by its maximum ln K: 0 if all "
        "images get the same prototype or every assignment is uniform, 1 if each assignment is "
        "certain and all prototypes are used equally",
        "up",
    ),
    "agreement": Term(
        "view agreement",
        "share of images whose two random crops get the same prototype",
        "up",
    ),
    "effective_rank": Term(
        "effective rank",
        "how many dimensions the backbone's features use (RankMe); near 1, all images have nearly "
        "the same features",
        "up",
    ),
    "effective_rank_projected": Term(
        "effective rank, projected",
        "the same after the projection head; below 1.5 counts as collapse",
        "up",
    ),
    "feature_std": Term(
        "feature spread",
        "standard deviation of L2-normalised features: 0 if all are the same, 1 if they are "
        "spread evenly",
        "up",
    ),
    "code_entropy": Term(
        "code entropy",
        "normalised entropy of an image's code (its soft assignment to prototypes): 0 is one "
        "prototype, 1 is uniform",
    ),
    "usage_entropy": Term(
        "prototype usage",
        "normalised entropy of the prototypes' use over all images: 1 is even",
        "up",
    ),
    "prototypes_in_use": Term(
        "prototypes in use", "prototypes that are nearest to at least one image", "up"
    ),
    "duplicate_prototypes": Term(
        "duplicate prototypes", "share of prototypes nearly equal to another prototype", "down"
    ),
    "alignment": Term(
        "alignment",
        "squared distance between the features of two crops of an image: 0 to 4",
        "down",
    ),
    "uniformity": Term(
        "uniformity",
        "how evenly features cover the unit sphere: 0 is a single point, below -2 is spread out",
        "down",
    ),
    "loss_share": Term(
        "loss / ln K", "the loss divided by the loss at chance: 1 means nothing was learned", "down"
    ),
    "accuracy": Term("accuracy", "share of images whose predicted class is their label", "up"),
    "balanced_accuracy": Term(
        "balanced accuracy", "mean recall over classes: each class counts the same", "up"
    ),
    "macro_f1": Term(
        "macro-F1", "mean over classes of F1, the harmonic mean of precision and recall", "up"
    ),
    "top5": Term(
        "top-5 accuracy",
        "share of images whose label is among the five most probable classes",
        "up",
    ),
    "loss": Term("cross-entropy", "mean negative log-likelihood of the label", "down"),
    "calibration_error": Term(
        "calibration error",
        "expected calibration error (ECE): gap between confidence and accuracy; 0 % is calibrated",
        "down",
    ),
}

PERCENT_METRICS = {  # formatted as percent
    "knn_accuracy",
    "linear_accuracy",
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


def metric_name(key: str) -> str:
    """The name of a metric for people, also of one that only a task has."""
    return METRICS[key].name if key in METRICS else key.replace("_", " ")


def format_metric(key: str, value: float | None) -> str:
    """Format a metric's value: `37.2 %`, `133.6`, `-2.51`; `-` for None."""
    if value is None:
        return "-"
    if key in PERCENT_METRICS:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if key == "prototypes_in_use" else f"{value:.3g}"
