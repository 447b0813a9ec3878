"""How good a model is: what the true continuation costs it, and how its own one compares."""

from valle.evaluation.comparisons import Comparison
from valle.evaluation.embeddings import Embedding, get_embedding
from valle.evaluation.frechet import frechet_distance
from valle.evaluation.likelihood import (
    FrameCosts,
    Likelihood,
    LikelihoodMeter,
    frame_costs,
    prompts_before,
)
from valle.evaluation.passages import (
    MEASURES,
    Interval,
    Measure,
    Passage,
    compare_passages,
    evaluate_passages,
    fast_measures,
    measures_for,
    separation,
)

__all__ = [
    "MEASURES",
    "Comparison",
    "Embedding",
    "FrameCosts",
    "Interval",
    "Likelihood",
    "LikelihoodMeter",
    "Measure",
    "Passage",
    "compare_passages",
    "evaluate_passages",
    "fast_measures",
    "frame_costs",
    "frechet_distance",
    "get_embedding",
    "measures_for",
    "prompts_before",
    "separation",
]
