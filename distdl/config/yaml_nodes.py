"""How large a YAML text becomes. An alias (`*name`) costs five letters and stands for all that its anchor holds, which may
be aliases again: 227 letters can mean a million values. What is written out is counted before anything is built."""

from __future__ import annotations

import yaml

MOST_NODES = 100_000
"""Keys and values of one text with every alias written out; a config has some hundreds."""


class BoundedLoader(yaml.SafeLoader):
    """Raises MarkedYAMLError for a text of more than `MOST_NODES` values, and for an alias that stands within itself."""

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None and (total := _size(root, {})) > MOST_NODES:
            words = (
                f"{total:,} values with its aliases written out; {MOST_NODES:,} are the most, write out what is meant"
            )
            raise yaml.MarkedYAMLError(problem=words, problem_mark=root.start_mark)
        return root


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Nodes at and below one, every alias counted as what it stands for. 0 in `sizes`: being counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if sizes.get(id(node)) == 0:
        raise yaml.MarkedYAMLError(problem="an alias stands within its own anchor", problem_mark=node.start_mark)
    if id(node) not in sizes:
        sizes[id(node)] = 0
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]
