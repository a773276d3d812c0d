"""Monte Carlo tree search in batches: Gumbel MuZero and PUCT, for one player, two players and chance. It knows no network."""

from sb3_mbrl.planners.tree_search.search import Expand, SearchResult, TreeSearch
from sb3_mbrl.planners.tree_search.tree import Leaf, Tree

__all__ = ["Expand", "Leaf", "SearchResult", "Tree", "TreeSearch"]
