"""The seeded generator of the bundled data: a world of fictitious authors in the format of TOFU.

`make_world` draws a world, `write_world` stores it as JSON lines, `verify_world` compares a folder with its checksums.
The standard library is all it needs.
"""

from llm_unlearn.data.world.files import verify_world, write_world
from llm_unlearn.data.world.world import World, make_world

__all__ = ["World", "make_world", "verify_world", "write_world"]
