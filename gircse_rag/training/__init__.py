"""Training: the objective, differentiable refinement, data, and the trainer.

run                a training run from config to checkpoint: `train`
trainer            one optimiser step, with gradient caching
losses             the ICR objective: `icr_loss`
teacher            distillation from a sentence encoder: `teacher_loss`
lexical            supervised soft tokens: `lexical_loss` and its targets
unrolled           refinement with gradients through its KV cache
packing, folding   texts packed without padding; LoRA folded into the frozen weights
data, batches      rows and tasks; batches with their negatives
config             the keys of a training YAML
saving             checkpoints and resumable states, replaced atomically
soft_token_watch   statistics that show a collapse of the soft tokens
baseline           last-token and mean pooling, for comparison
"""

from gircse_rag.training.lexical import lexical_loss
from gircse_rag.training.losses import IcrLoss, icr_loss

__all__ = ["IcrLoss", "icr_loss", "lexical_loss"]
