"""Training: the objective, differentiable refinement, data, and the trainer."""

from gircse_rag.training.losses import IcrLoss, icr_loss

__all__ = ["IcrLoss", "icr_loss"]
