"""Public facts about the models and data sets that the studies name, so that a plan needs no download.

Architectures are those of `jaxalign.planning.architectures`. Where the models are on disk their own files are read
instead.
"""

from jaxalign.planning.architectures import ARCHITECTURES
from jaxalign.studies.study import PublishedData

__all__ = ["ARCHITECTURES", "DATASETS"]

_ULTRAFEEDBACK = "row counts from the data cards; tokens a row (prompt 190, answer 340) and bytes are guesses"

DATASETS = {
    "HuggingFaceH4/ultrafeedback_binarized": PublishedData(
        examples={"train_prefs": 61_135, "test_prefs": 2_000},
        prompt=190,
        completion=340,
        size=650_000_000,
        source=_ULTRAFEEDBACK,
    ),
    "allenai/ultrafeedback_binarized_cleaned": PublishedData(
        examples={"train_prefs": 60_800, "test_prefs": 2_000},
        prompt=190,
        completion=340,
        size=650_000_000,
        source="as HuggingFaceH4/ultrafeedback_binarized less what its cleaning took out: all numbers are guesses",
    ),
    "HuggingFaceH4/ultrachat_200k": PublishedData(
        examples={"train_sft": 207_865, "test_sft": 23_110},
        prompt=900,
        completion=250,
        size=1_600_000_000,
        source="row counts from the data card; tokens a row (conversation 900, last answer 250) and bytes are guesses",
    ),
}
