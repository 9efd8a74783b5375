"""GIRCSE in MTEB: `mteb.evaluate(GircseEncoder("smollm2-135m"), tasks)`."""

from mteb_gircse.encoder import TASK_PROMPTS, GircseEncoder

__all__ = ["TASK_PROMPTS", "GircseEncoder"]
