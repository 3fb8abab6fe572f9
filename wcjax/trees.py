"""Questions about any tree: the name of a path, and the nodes of a class."""

from typing import Any

import jax


def path_str(path: jax.tree_util.KeyPath) -> str:
    """A JAX key path as 'conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the tree itself)"


def instances(tree: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    """The nodes and leaves of a tree that are of one of these classes. Those inside another are omitted."""
    is_one = lambda x: isinstance(x, kinds)
    return list(filter(is_one, jax.tree.leaves(tree, is_leaf=is_one)))
