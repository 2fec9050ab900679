"""`python -m llm_unlearn.data.world FOLDER` writes the default world, the one that is bundled, to FOLDER."""

import sys

from llm_unlearn.data.world import make_world, write_world

if len(sys.argv) != 2:
    sys.exit("usage: python -m llm_unlearn.data.world FOLDER")
write_world(make_world(), sys.argv[1])
