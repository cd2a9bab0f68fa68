"""python -m minigpt_edge."""

from minigpt_edge.cli import main

main()
