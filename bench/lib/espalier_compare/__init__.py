"""bench/compare: Espalier beside plain veth and its peers, in one run."""
