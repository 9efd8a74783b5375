"""`python -m gircse_rag.cli`: what `accelerate launch -m` starts on every process."""

from gircse_rag.cli import main

if __name__ == "__main__":
    main()
