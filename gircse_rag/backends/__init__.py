"""Where refinement runs. One protocol (`base.py`); `reference` is the paper's loop, the yardstick of the others."""
