"""`python -m llm_unlearn`: the command line."""

from llm_unlearn.cli import main

main()
