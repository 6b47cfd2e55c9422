"""A toxicity classifier trained from labelled remarks, for where Dolma's model is not at hand.

The remarks are tweets and comments, most of them short and rude. Plain sentences stand among the
negatives, so that ordinary prose, which no tweet resembles, is known as harmless.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cs336.filters.labelled import Comment
from cs336.filters.trained import Report, TrainedConfig, TrainedModel, train

TOXIC, NON_TOXIC = "toxic", "non-toxic"


@dataclass(frozen=True, kw_only=True)
class ToxicityConfig(TrainedConfig):
    """How the toxicity classifier is trained, and whether it is wanted.

    Attributes:
        enabled: False leaves the filter to Dolma's model alone.
    """

    enabled: bool = True
    epochs: int = 10
    lr: float = 0.2


def train_toxicity(comments: Iterable[Comment], prose: Iterable[str], path: Path, config: ToxicityConfig) -> Report:
    """Train on labelled remarks, with plain sentences as further negatives; see `cs336.filters.trained.train`."""
    rows = [(comment.is_toxic, clean_remark(comment.text)) for comment in comments]
    toxic = [("", text) for is_toxic, text in rows if is_toxic]
    harmless = [("", text) for is_toxic, text in rows if not is_toxic] + [("", text) for text in prose]
    return train(toxic, harmless, path, config, positive=TOXIC, negative=NON_TOXIC)


class ToxicityModel:
    """The classifier that `train_toxicity` made.

    Raises:
        UserError: the file is missing or not this model.
    """

    def __init__(self, path: Path) -> None:
        self._model = TrainedModel(path, positive=TOXIC, negative=NON_TOXIC)

    def classify(self, text: str) -> tuple[str, float]:
        """("toxic" or "non-toxic", calibrated confidence in (0, 1])."""
        score = self._model.probability(clean_remark(text))
        return (TOXIC, score) if score >= 0.5 else (NON_TOXIC, 1.0 - score)


_TWITTER = re.compile(r"https?://\S+|@\w+|\bRT\b:?")


def clean_remark(text: str) -> str:
    """A tweet without addresses, names and the mark of a repetition: they tell tweets from prose, not tone."""
    return _TWITTER.sub(" ", html.unescape(text))
