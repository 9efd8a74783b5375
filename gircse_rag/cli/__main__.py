"""Entry point of `python -m gircse_rag.cli`, which `accelerate launch -m` runs in every process."""

from gircse_rag.cli import main

if __name__ == "__main__":
    main()
