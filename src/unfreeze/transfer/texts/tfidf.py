"""TF-IDF with logistic regression: the baseline of text classification."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORDS, CHARACTERS = (1, 2), (2, 5)  # lengths of n-grams
STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation C
FOLDS = 5


@dataclass(frozen=True)
class TfidfModel:
    """A fitted model; `strength`: C, selected by cross-validation on the training texts."""

    model: Any
    strength: float
    classes: int

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities float64 [N, classes]; -inf for classes without training texts."""
        outputs = np.full((len(texts), self.classes), -np.inf)
        outputs[:, self.model.classes_] = self.model.predict_log_proba(texts)
        return torch.from_numpy(outputs)


def fit_tfidf(
    texts: Sequence[str], labels: npt.NDArray[np.int64], classes: int, seed: int
) -> TfidfModel:
    """Logistic regression on TF-IDF of word and character n-grams.

    `labels` [N] in 0..classes-1, of two classes or more. C is selected by stratified
    cross-validation if each class has two texts or more, else it is the middle one of STRENGTHS.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline, make_union

    grams = make_union(
        TfidfVectorizer(ngram_range=WORDS, sublinear_tf=True, token_pattern=r"\S+"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, sublinear_tf=True),
    )
    model: Any = make_pipeline(grams, LogisticRegression(C=STRENGTHS[1], max_iter=2000))
    counts = np.bincount(labels, minlength=classes)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds < 2:
        return TfidfModel(model.fit(texts, labels), STRENGTHS[1], classes)
    search = GridSearchCV(
        model,
        {"logisticregression__C": list(STRENGTHS)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
    )
    search.fit(texts, labels)
    strength = float(search.best_params_["logisticregression__C"])
    return TfidfModel(search.best_estimator_, strength, classes)
