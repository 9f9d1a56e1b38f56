"""Whether inductor compiled in this process or took its code from a cache, as its counters tell."""

from __future__ import annotations

from collections.abc import Mapping


def came_from_cache(counters: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether inductor compiled nothing and took all its graphs from a cache; `counters`: dynamo's, by group.

    Misses of AOTAutograd's cache do not matter: inductor may still have the code in its own.
    """
    seen = counters.get("inductor", {})
    hits = seen.get("fxgraph_cache_hit", 0) + counters.get("aot_autograd", {}).get("autograd_cache_hit", 0)
    compiled = seen.get("fxgraph_cache_miss", 0) + seen.get("fxgraph_cache_bypass", 0)
    return hits > 0 and compiled == 0
