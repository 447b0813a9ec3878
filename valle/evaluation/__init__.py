"""How good a model is: what the true continuation costs it."""

from valle.evaluation.likelihood import (
    FrameCosts,
    Likelihood,
    LikelihoodMeter,
    frame_costs,
    prompts_before,
)

__all__ = ["FrameCosts", "Likelihood", "LikelihoodMeter", "frame_costs", "prompts_before"]
